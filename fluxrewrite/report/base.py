"""What all records of a report have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Record"]


class Record(BaseModel):
    """A part of a report: read-only, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
