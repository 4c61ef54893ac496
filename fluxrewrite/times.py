"""Times that were measured, kept in files for the next compile."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch._inductor.runtime.cache_dir_utils import cache_dir

from .sources import function_digest

__all__ = ["Time", "Times", "device_name", "machine_text", "processor"]

log = logging.getLogger("fluxrewrite")
SCHEMA = "fluxrewrite.times/1"


class Time(BaseModel):
    """Microseconds of a block, and what its difference from the block without kernels is uncertain by."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    us: float
    noise_us: float


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    schema_: Literal["fluxrewrite.times/1"] = "fluxrewrite.times/1"
    times: dict[str, Time]


class Times:
    """Times by key, in one file for each block.

    Args:
        folder: where the files are; by default beside Inductor's own cache.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else Path(cache_dir()) / "fluxrewrite"

    def load(self, block: str) -> dict[str, Time]:
        """What is known of a block. A file that cannot be read is left out with a warning."""
        path = self._path(block)
        try:
            return _File.model_validate_json(path.read_bytes()).times
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            first = str(error).splitlines()[0]
            log.warning("fluxrewrite: %s is no file of times (%s); the block is measured again", path, first)
            return {}

    def save(self, block: str, times: Mapping[str, Time]) -> None:
        """Replace what is known of a block. A folder that cannot be written to is said, and nothing is kept."""
        path = self._path(block)
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            draft.write_text(_File(times=dict(times)).model_dump_json(indent=1))
            draft.replace(path)
        except OSError as error:
            log.warning("fluxrewrite: measured times are not kept (%s); give a cache_dir that can be written to", error)

    def _path(self, block: str) -> Path:
        return self.folder / f"{block}.json"


def machine_text(device: torch.device, inner: Callable[..., Any], name: str, options: Mapping[str, Any] | None) -> str:
    """All but the graph and the kernels that a time depends on: versions, compiler, device and threads."""
    compiler = [name, function_digest(inner), repr(sorted((options or {}).items()))]
    if name == "inductor":
        compiler.append(hashlib.sha256(torch._inductor.config.save_config_portable().__repr__().encode()).hexdigest())
    where = [str(device.type), device_name(device), str(torch.get_num_threads())]
    return "\n".join([SCHEMA, torch.__version__, version("fluxrewrite"), *compiler, *where])


def device_name(device: torch.device) -> str:
    """What a device calls itself; of the CPU, the processor with the vector instructions that torch uses."""
    if device.type == "cpu":
        return f"{platform.machine()} {processor()} {torch.backends.cpu.get_cpu_capability()}"
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name(device)) if name is not None else device.type


@functools.cache
def processor() -> str:
    """The model of processor 0; on Linux `platform.processor` does not tell."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
