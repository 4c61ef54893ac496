"""NKI data types over NumPy and ml_dtypes, and the casts between them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np


class DType(str):
    """An NKI dtype: a string, as in NKI 0.6, that also knows its NumPy storage.

    Attributes:
        np: NumPy dtype that stores it with true rounding.
        itemsize: bytes per element on the device.
        kind: ``f`` float, ``i`` signed, ``u`` unsigned integer, ``p`` packed (opaque).
    """

    __slots__ = ("itemsize", "kind", "np")

    np: np.dtype[Any]
    itemsize: int
    kind: str

    def __new__(cls, name: str, store: Any, kind: str) -> DType:
        """Make the dtype ``name`` stored as NumPy type ``store``."""
        self = super().__new__(cls, name)
        self.np = np.dtype(store)
        self.itemsize = self.np.itemsize
        self.kind = kind
        return self


int8 = DType("int8", np.int8, "i")
int16 = DType("int16", np.int16, "i")
int32 = DType("int32", np.int32, "i")
uint8 = DType("uint8", np.uint8, "u")
uint16 = DType("uint16", np.uint16, "u")
uint32 = DType("uint32", np.uint32, "u")
bool_ = DType("bool", np.uint8, "u")
float16 = DType("float16", np.float16, "f")
bfloat16 = DType("bfloat16", ml_dtypes.bfloat16, "f")
float32 = DType("float32", np.float32, "f")
tfloat32 = DType("tfloat32", np.float32, "f")
float8_e4m3 = DType("float8_e4m3", ml_dtypes.float8_e4m3, "f")
float8_e4m3fn = DType("float8_e4m3fn", ml_dtypes.float8_e4m3fn, "f")
float8_e5m2 = DType("float8_e5m2", ml_dtypes.float8_e5m2, "f")
float8_e8m0fnu = DType("float8_e8m0fnu", ml_dtypes.float8_e8m0fnu, "f")
float8_e5m2_x4 = DType("float8_e5m2_x4", np.uint32, "p")
float8_e4m3fn_x4 = DType("float8_e4m3fn_x4", np.uint32, "p")
float4_e2m1fn_x4 = DType("float4_e2m1fn_x4", np.uint16, "p")

ALL: dict[str, DType] = {
    d: d
    for d in (
        *(int8, int16, int32, uint8, uint16, uint32, bool_),
        *(float16, bfloat16, float32, tfloat32),
        *(float8_e4m3, float8_e4m3fn, float8_e5m2, float8_e8m0fnu),
        *(float8_e5m2_x4, float8_e4m3fn_x4, float4_e2m1fn_x4),
    )
}
WIDE = frozenset({float32, tfloat32})
MATMUL = frozenset({float32, tfloat32, bfloat16, float16, float8_e4m3, float8_e5m2, float8_e4m3fn})
FP8 = frozenset({float8_e4m3, float8_e5m2, float8_e4m3fn})
BF16_FP16 = frozenset({bfloat16, float16})


def of(value: Any) -> DType | None:
    """Return the NKI dtype named by a DType, name, NumPy or torch dtype; None when there is none."""
    if isinstance(value, DType):
        return value
    name = value if isinstance(value, str) else getattr(value, "name", None) or str(value)
    if not isinstance(value, str) and str(value).startswith("torch."):
        name = str(value).removeprefix("torch.")
    elif isinstance(value, type):
        name = np.dtype(value).name
    return ALL.get(name)


def _round_tf32(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(values), rounded.view(np.float32), values)


def to_float32(array: np.ndarray) -> np.ndarray:
    """Return ``array`` as float32, by exact bit widening for bfloat16."""
    if array.dtype == np.float32:
        return array
    if array.dtype == bfloat16.np:
        widened = array.view(np.uint16).astype(np.uint32)
        widened <<= np.uint32(16)
        return np.asarray(widened.view(np.float32))
    return np.asarray(array.astype(np.float32))


def cast(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Round float32 ``values`` to ``dtype``: nearest even; integers saturate and NaN becomes 0 (NKI 0.6 simulator)."""
    if dtype.kind in "iu" and values.dtype.kind == "f":
        info = np.iinfo(dtype.np)
        wide = np.nan_to_num(np.rint(values.astype(np.float64)), nan=0.0, posinf=info.max, neginf=info.min)
        return np.asarray(np.clip(wide, info.min, info.max).astype(dtype.np))
    if dtype is tfloat32:
        return _round_tf32(values)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values.astype(dtype.np))
