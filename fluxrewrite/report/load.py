"""Reports read back from their JSON files."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

from ..errors import InputError
from .model import SCHEMA, Report

__all__ = ["load_report"]


def load_report(path: Path) -> Report:
    """Read a report. Raises InputError, naming the file, when it cannot be read or is no report of this version."""
    try:
        data = from_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({error})") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or not schema.startswith("fluxrewrite.report/"):
        raise InputError(f"{path}: is no report; fluxrewrite inspect MODEL --format json -o FILE writes one")
    if schema != SCHEMA:
        raise InputError(f"{path}: its schema is {schema}, and this fluxrewrite reads {SCHEMA}; make the report anew")
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: is no whole report: {where}: {first['msg']}") from error
