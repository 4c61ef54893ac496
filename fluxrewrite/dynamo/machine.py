"""The machine that times are measured on."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..provider.digests import function_digest
from .inner import inner_backend
from .time_cache import SCHEMA

__all__ = ["device_name", "machine_text", "processor"]


def machine_text(device: torch.device, inner: Callable[..., Any], name: str, options: Mapping[str, Any] | None) -> str:
    """What a measured time depends on besides the graph and the kernels: versions, compiler, device and threads."""
    compiler = [name, function_digest(inner), repr(sorted((options or {}).items()))]
    settings = inner_backend(name).settings()
    if settings:
        compiler.append(hashlib.sha256(settings.encode()).hexdigest())
    where = [str(device.type), device_name(device), str(torch.get_num_threads())]
    return "\n".join([SCHEMA, torch.__version__, version("fluxrewrite"), *compiler, *where])


def device_name(device: torch.device) -> str:
    """The device's own name; for the CPU, the processor and the vector instructions that torch uses."""
    if device.type == "cpu":
        return f"{platform.machine()} {processor()} {torch.backends.cpu.get_cpu_capability()}"
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name(device)) if name is not None else device.type


@functools.cache
def processor() -> str:
    """The model of processor 0. `platform.processor` is empty on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
