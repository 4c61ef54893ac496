from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fluxrewrite.kernels.emulator import EmulationError, HardwareLimit, simulate
from fluxrewrite.kernels.emulator import isa as nisa
from fluxrewrite.kernels.emulator import language as nl


class Bench:
    """Runs a kernel body that computes on tiles, around the loads and stores that every kernel needs."""

    def tile(self, shape: tuple[int, ...], dtype: Any = nl.float32, buffer: Any = nl.sbuf, value: float = 0.0) -> Any:
        """A tile that has been written."""
        out = nl.ndarray(shape, dtype, buffer)
        nisa.memset(out, value)
        return out

    def load(self, array: Any, dtype: Any = None, buffer: Any = nl.sbuf) -> Any:
        """A tile with the contents of an HBM tensor."""
        staged = nl.ndarray(array.shape, dtype or array.dtype, nl.sbuf)
        nisa.dma_copy(staged, array)
        if buffer is nl.sbuf:
            return staged
        out = nl.ndarray(array.shape, staged.dtype, buffer)
        nisa.tensor_copy(out, staged)
        return out

    def save(self, tile: Any) -> Any:
        """An output with the contents of a tile."""
        if tile.buffer is nl.psum:
            staged = nl.ndarray(tile.shape, tile.dtype, nl.sbuf)
            nisa.tensor_copy(staged, tile)
            tile = staged
        out = nl.ndarray(tile.shape, tile.dtype, nl.shared_hbm)
        nisa.dma_copy(out, tile)
        return out

    def compute(
        self,
        body: Callable[..., Any],
        *arrays: np.ndarray,
        shape: tuple[int, ...],
        dtype: Any = nl.float32,
        buffers: tuple[Any, ...] = (),
        out_buffer: Any = nl.sbuf,
        device: str = "trn2",
    ) -> Any:
        """Output of ``body(dst, *tiles)`` with the arrays loaded as tiles."""

        def kernel(*hbm: Any) -> Any:
            places = [*buffers, *[nl.sbuf] * (len(hbm) - len(buffers))]
            tiles = [self.load(a, buffer=b) for a, b in zip(hbm, places, strict=True)]
            dst = nl.ndarray(shape, dtype, out_buffer)
            body(dst, *tiles)
            return self.save(dst)

        return simulate(kernel, device=device)(*arrays).outputs

    def refused(
        self,
        kernel: Callable[..., Any],
        limit: HardwareLimit,
        *texts: str,
        device: str = "trn2",
        args: tuple[Any, ...] = (),
    ) -> EmulationError:
        """Assert that ``kernel`` is refused for ``limit``, in words that name this file and ``texts``."""
        with pytest.raises(EmulationError) as caught:
            simulate(kernel, device=device)(*args)
        assert caught.value.limit is limit, str(caught.value)
        assert "/tests/" in caught.value.line
        assert caught.value.instruction
        for text in (f"[{limit.value}]", caught.value.instruction, *texts):
            assert text in str(caught.value)
        return caught.value


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
