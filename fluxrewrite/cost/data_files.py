"""Reads data files. An error is one line that names the file, the field and the remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import InputError

__all__ = ["DataRecord", "read", "read_json", "shipped"]

DATA = Path(__file__).parent / "data"


class DataRecord(BaseModel):
    """A part of a data file. It is read-only, and refuses unknown fields and infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


R = TypeVar("R", bound=BaseModel)


def shipped(folder: str) -> dict[str, Path]:
    """The package's own data files in a folder, by name, in name order."""
    return {path.stem: path for path in sorted((DATA / folder).glob("*.json"))}


def read_json(path: Path, remedy: str) -> Any:
    """The content of a JSON file. Raises InputError, which ends with `remedy`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text in UTF-8; {remedy}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg}); {remedy}") from error


_NONE: Mapping[str, str] = MappingProxyType({})


def read(path: Path, model: type[R], remedy: str, remedies: Mapping[str, str] = _NONE) -> R:
    """A data file as `model`.

    Args:
        path: of the file.
        model: the record that it holds.
        remedy: what the reader of an error can do.
        remedies: what to do about single fields, instead of `remedy`.

    Raises:
        InputError: the file cannot be read or does not fit; the message names file and field and ends with the remedy.
    """
    content = read_json(path, remedy)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first, *more = error.errors()
        field = ".".join(map(str, first["loc"])) or "the file"
        message = first["msg"].removeprefix("Value error, ")
        others = f" (and {len(more)} more)" if more else ""
        raise InputError(f"{path}: {field}: {message}{others}; {remedies.get(field, remedy)}") from error
