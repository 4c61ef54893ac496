"""Measured times, kept in files for the next compile."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch._inductor.runtime.cache_dir_utils import cache_dir

from ..errors import one_line

__all__ = ["Time", "Times"]

log = logging.getLogger("fluxrewrite")
SCHEMA = "fluxrewrite.times/1"


class Time(BaseModel):
    """Microseconds of a block, and the noise of its difference from the block without kernels."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    us: float
    noise_us: float


class _TimesFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    schema_: Literal["fluxrewrite.times/1"] = "fluxrewrite.times/1"
    times: dict[str, Time]


class Times:
    """Times by key, in one file for each block.

    Args:
        folder: where the files are; by default in the folder of Inductor's cache.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else Path(cache_dir()) / "fluxrewrite"

    def load(self, block: str) -> dict[str, Time]:
        """The known times of a block. A file that cannot be read is ignored with a warning."""
        path = self._path(block)
        try:
            return _TimesFile.model_validate_json(path.read_bytes()).times
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            why = one_line(error, named=False)
            log.warning("fluxrewrite: %s is not a file of times (%s); the block is measured again", path, why)
            return {}

    def save(self, block: str, times: Mapping[str, Time]) -> None:
        """Replace the known times of a block. If the folder cannot be written, log that and keep nothing."""
        path = self._path(block)
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft.write_text(_TimesFile(times=dict(times)).model_dump_json(indent=1))
            draft.replace(path)
        except OSError as error:
            log.warning("fluxrewrite: measured times are not kept (%s); give a writable cache_dir", error)

    def _path(self, block: str) -> Path:
        return self.folder / f"{block}.json"
