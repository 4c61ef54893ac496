"""Tensor engine: matmul and transpose."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import costs, dtypes
from .checks import PSUM, SBUF, need_generation, on_chip, pick_engine
from .enums import engine as engines
from .enums import matmul_perf_mode
from .errors import HardwareLimit, fail
from .machine import Machine, current, load, raw, store
from .specs import MOVING_FREE_MAX, PARTITIONS, PSUM_BANK_BYTES, STATIONARY_FREE_MAX
from .storage import MATMUL_STARTED, UNWRITTEN
from .tensor import NkiTensor
from .timeline import Engine

_DEFAULT_TILE = (PARTITIONS, PARTITIONS)


def check_bank(machine: Machine, ins: str, dst: NkiTensor) -> None:
    """Refuse a Tensor-engine result that crosses a 2 KiB PSUM bank (v2/v3)."""
    if machine.generation >= 4:
        return
    base = dst.storage.address[1] if dst.storage.address else 0
    lo, hi = (base + n * dst.dtype.itemsize for n in dst.free_span())
    if lo // PSUM_BANK_BYTES != (hi - 1) // PSUM_BANK_BYTES:
        text = f"dst takes bytes {lo} to {hi} of its PSUM partition; it must lie within one bank of {PSUM_BANK_BYTES}"
        fail(HardwareLimit.PSUM_BANK, ins, text)


def _check_types(machine: Machine, ins: str, dst: NkiTensor, a: NkiTensor, b: NkiTensor, *, double: bool) -> None:
    for role, view in (("stationary", a), ("moving", b)):
        if view.dtype not in dtypes.MATMUL:
            fail(HardwareLimit.DTYPE, ins, f"{role} is {view.dtype}, which TensorE does not take")
        if view.dtype == dtypes.float8_e4m3fn:
            need_generation(machine, ins, 4)
        if double and view.dtype not in dtypes.FP8:
            fail(HardwareLimit.DTYPE, ins, f"{role} is {view.dtype}; double_row takes fp8")
    pair = {a.dtype, b.dtype}
    if len(pair & dtypes.WIDE) and not pair <= dtypes.WIDE:
        fail(HardwareLimit.DTYPE, ins, f"{a.dtype} with {b.dtype}: float32/tfloat32 go only with float32/tfloat32")
    if pair == {dtypes.float8_e4m3, dtypes.float8_e4m3fn}:
        fail(HardwareLimit.DTYPE, ins, "float8_e4m3 and float8_e4m3fn cannot be mixed")
    allowed = ("float32", "bfloat16") if machine.generation >= 4 else ("float32",)
    if dst.dtype not in allowed:
        text = f"dst is {dst.dtype}; on NeuronCore-v{machine.generation} it must be {' or '.join(allowed)}"
        fail(HardwareLimit.DTYPE, ins, text)


def _array_parts(
    machine: Machine, ins: str, position: Any, size: Any
) -> tuple[tuple[int, int], tuple[int, ...] | None]:
    if not position and not size:
        return _DEFAULT_TILE, None
    if not position or not size:
        fail(HardwareLimit.MATMUL_TILE, ins, f"tile_position={position} and tile_size={size} must be given together")
    (row, col), (rows, cols) = map(int, position), map(int, size)
    legal = (64, 128) if machine.generation == 2 else (32, 64, 128)
    if rows not in legal or cols not in legal:
        fail(HardwareLimit.MATMUL_TILE, ins, f"tile_size {(rows, cols)}; sizes are {legal} on v{machine.generation}")
    if row % rows or col % cols or not (0 <= row <= PARTITIONS - rows and 0 <= col <= PARTITIONS - cols):
        fail(
            HardwareLimit.MATMUL_TILE,
            ins,
            f"tile_position {(row, col)} is not a multiple of tile_size {(rows, cols)} within 128",
        )
    parts = tuple(4 * r + c for r in range(row // 32, (row + rows) // 32) for c in range(col // 32, (col + cols) // 32))
    return (rows, cols), parts


def _check_sizes(
    machine: Machine, ins: str, dst: NkiTensor, a: NkiTensor, b: NkiTensor, *, tile: tuple[int, int], double: bool
) -> tuple[int, int, int]:
    if double and (a.ndim != 3 or b.ndim != 3 or a.shape[1] != 2 or b.shape[1] != 2):
        fail(
            HardwareLimit.MATMUL_SIZE,
            ins,
            f"double_row takes [K, 2, M] and [K, 2, N], got {list(a.shape)}, {list(b.shape)}",
        )
    k, m, n = a.shape[0], a.free_elements, b.free_elements
    if double:
        m, n = a.shape[2], b.shape[2]
    if b.shape[0] != k:
        fail(HardwareLimit.MATMUL_SIZE, ins, f"K differs: stationary {k} partitions, moving {b.shape[0]}")
    if k > tile[0] or m > min(tile[1], STATIONARY_FREE_MAX):
        fail(HardwareLimit.MATMUL_SIZE, ins, f"stationary K={k}, M={m}; the limit is K<={tile[0]}, M<={tile[1]}")
    most = MOVING_FREE_MAX if machine.generation < 4 else 8 * PSUM_BANK_BYTES // dst.dtype.itemsize
    if n > most:
        fail(HardwareLimit.MATMUL_SIZE, ins, f"moving N={n}; the limit on NeuronCore-v{machine.generation} is {most}")
    if dst.shape[0] != m or dst.free_elements != n:
        fail(HardwareLimit.MATMUL_SIZE, ins, f"dst is {list(dst.shape)}; stationary x moving gives [{m}, {n}]")
    return k, m, n


def _resolve_accumulate(machine: Machine, ins: str, dst: NkiTensor, accumulate: bool | None) -> bool:
    if accumulate is not None and not accumulate:
        return False
    st = dst.storage
    low, high, missing = st.lowest_state(dst.shape, dst.strides, dst.offset, dst.dtype.itemsize)
    if accumulate is None and high == UNWRITTEN:
        return False
    started = low == MATMUL_STARTED or (machine.generation >= 4 and low > UNWRITTEN)
    if not started:
        found = f"{missing} elements are unwritten" if missing else "an instruction other than a matmul wrote there"
        text = f"accumulate={accumulate} on a PSUM region that no overwriting matmul has started: {found}"
        fail(HardwareLimit.ACCUMULATE, ins, text)
    return True


def nc_matmul(
    dst: NkiTensor,
    stationary: NkiTensor,
    moving: NkiTensor,
    is_stationary_onezero: bool = False,
    is_moving_onezero: bool = False,
    is_transpose: bool = False,
    accumulate: bool | None = None,
    tile_position: tuple[int, ...] = (),
    tile_size: tuple[int, ...] = (),
    perf_mode: matmul_perf_mode = matmul_perf_mode.none,
    name: str | None = None,
) -> None:
    """``dst[M, N] (+)= stationary[K, M].T @ moving[K, N]``, SBUF to PSUM, summed in float32.

    ``accumulate``: False overwrites, True adds, None overwrites first and adds later. Raises ``buffer``, ``dtype``,
    ``matmul_size``, ``matmul_tile``, ``psum_bank``, ``accumulate``, ``arch``, ``partition_*``, ``uninitialised``.
    """
    ins, machine = "nc_matmul", current()
    on_chip(dst, ins, "dst", PSUM)
    on_chip(stationary, ins, "stationary", SBUF)
    on_chip(moving, ins, "moving", SBUF)
    double = perf_mode is matmul_perf_mode.double_row
    if double:
        need_generation(machine, ins, 3)
        if is_transpose or (tile_size and int(tile_size[1]) != PARTITIONS):
            fail(HardwareLimit.MATMUL_TILE, ins, "double_row goes neither with column tiling nor with transposes")
    if is_transpose:
        return _matmul_transpose(machine, dst, stationary, moving, position=tile_position, size=tile_size)
    _check_types(machine, ins, dst, stationary, moving, double=double)
    tile, parts = _array_parts(machine, ins, tile_position, tile_size)
    k, m, n = _check_sizes(machine, ins, dst, stationary, moving, tile=tile, double=double)
    check_bank(machine, ins, dst)
    add = _resolve_accumulate(machine, ins, dst, accumulate)
    rounds = costs.passes(stationary.dtype, moving.dtype, onezero=is_stationary_onezero or is_moving_onezero)
    work = k * m * n * (2 if double else 1)
    machine.matmul(ins, costs.matmul(m, n, rounds), (stationary, moving), dst, macs=work, parts=parts)
    if machine.numerics:
        store(dst, _product(stationary, moving, double, dst if add else None))


def _product(stationary: NkiTensor, moving: NkiTensor, double: bool, onto: NkiTensor | None) -> np.ndarray:
    left, right = load(stationary), load(moving)
    if double:
        # Contraction index (partition, pair): both tiles hold the pair next to the partition.
        left = left.reshape(2 * left.shape[0], -1)
        right = right.reshape(2 * right.shape[0], -1)
    with np.errstate(all="ignore"):
        result = left.T @ right
        return np.asarray(result if onto is None else load(onto) + result)


def _matmul_transpose(
    machine: Machine, dst: NkiTensor, data: NkiTensor, identity: NkiTensor, *, position: Any, size: Any
) -> None:
    ins = "nc_matmul"
    _, parts = _array_parts(machine, ins, position, size)
    k = data.shape[0]
    if identity.shape[0] != k or identity.free_elements != k:
        fail(
            HardwareLimit.MATMUL_SIZE,
            ins,
            f"is_transpose needs a [{k}, {k}] identity as moving, got {list(identity.shape)}",
        )
    _transpose(machine, ins, dst, data, reads=(data, identity), parts=parts)


def _transpose(
    machine: Machine,
    ins: str,
    dst: NkiTensor,
    data: NkiTensor,
    *,
    reads: tuple[NkiTensor, ...],
    parts: tuple[int, ...] | None = None,
) -> None:
    p, f = data.shape[0], data.free_elements
    _check_transpose_shape(ins, dst, data, PARTITIONS, "TensorE")
    check_bank(machine, ins, dst)
    cycles = costs.tensor_transpose(p, f, costs.passes(data.dtype))
    machine.matmul(ins, cycles, reads, dst, macs=0, parts=parts)
    if machine.numerics:
        store(dst, raw(data).T.copy())


def _check_transpose_shape(ins: str, dst: NkiTensor, data: NkiTensor, most: int, unit: str) -> None:
    p, f = data.shape[0], data.free_elements
    if p > most or f > most:
        fail(HardwareLimit.TRANSPOSE_SIZE, ins, f"data is [{p}, {f}]; {unit} transposes at most [{most}, {most}]")
    if dst.shape[0] != f or dst.free_elements != p:
        fail(HardwareLimit.TRANSPOSE_SIZE, ins, f"dst is {list(dst.shape)}; transposing [{p}, {f}] gives [{f}, {p}]")
    if dst.dtype != data.dtype:
        fail(HardwareLimit.DTYPE, ins, f"dst is {dst.dtype}, data {data.dtype}; they must be the same")


def nc_transpose(dst: NkiTensor, data: NkiTensor, engine: engines = engines.unknown, name: str | None = None) -> None:
    """Transpose ``data[P, F]`` (free dimensions flattened) into ``dst[F, P]`` of the same type.

    TensorE: up to 128x128, SBUF to PSUM. VectorE: up to 32x32, any on-chip memory. Without ``engine``: Tensor when data
    is in SBUF and dst in PSUM, else Vector. Raises ``transpose_size``, ``dtype``, ``buffer``, ``psum_bank``,
    ``engine``, ``partition_*``, ``uninitialised``.
    """
    ins, machine = "nc_transpose", current()
    on_chip(dst, ins, "dst")
    on_chip(data, ins, "data")
    big = data.shape[0] > 32 or data.free_elements > 32
    to_psum = dst.buffer is PSUM and data.buffer is SBUF
    default = Engine.TENSOR if to_psum or big else Engine.VECTOR
    unit = pick_engine(ins, engine, default, (Engine.TENSOR, Engine.VECTOR), (dst, data))
    if unit is Engine.TENSOR:
        on_chip(dst, ins, "dst", PSUM)
        on_chip(data, ins, "data", SBUF)
        _transpose(machine, ins, dst, data, reads=(data,))
        return
    _check_transpose_shape(ins, dst, data, 32, "VectorE")
    machine.compute(ins, unit, costs.plain(data.free_elements), (data,), (dst,))
    if machine.numerics:
        store(dst, raw(data).T.copy())
