"""Reports read back from their JSON files."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

from ..errors import InputError
from .model import SCHEMA, Report

__all__ = ["load_report"]

_REMEDY = "fluxrewrite inspect MODEL --format json -o FILE"


def load_report(path: Path) -> Report:
    """Read a report from JSON. Raises InputError, naming the file, when it cannot be read or is not a report of this version."""
    try:
        data = from_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or not schema.startswith("fluxrewrite.report/"):
        raise InputError(f"{path}: not a report; write one with {_REMEDY}")
    if schema != SCHEMA:
        raise InputError(
            f"{path}: a report of {schema}, but this version reads {SCHEMA}; write it again with {_REMEDY}"
        )
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: not a complete report: {where}: {first['msg']}") from error
