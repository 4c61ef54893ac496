"""Inductor takes every graph as it is; its settings decide how fast the compiled code is."""

from __future__ import annotations

import torch

from .record import InnerBackend

__all__ = ["BACKEND"]


def _settings() -> str:
    """All settings that Inductor's own cache depends on."""
    return repr(torch._inductor.config.save_config_portable())


BACKEND = InnerBackend(settings=_settings, caches={"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"})
