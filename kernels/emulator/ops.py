"""Operators of ``nki.language``: what ALUs and the Scalar engine's function table can apply.

Sources: tables ``tbl-aluop`` and ``tbl-act-func`` in ``nki/api/nki.api.shared.rst`` (SDK 2.32).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import Limit, fail

_erf = np.vectorize(math.erf, otypes=[np.float32])


@dataclass(frozen=True, eq=False)
class Op:
    """An operator token.

    Attributes:
        name: its name in ``nki.language``.
        binary: function of two arrays, when an ALU can apply it.
        unary: function of one array, when an ALU can apply it alone.
        activation: function of one array, when the Scalar engine has it.
        valid: range of inputs for which the Scalar engine's function is right; None: all.
        reduction: NumPy ufunc that reduces with it, when that is legal.
        bits: whether it works on integer bit patterns.
        since: first NeuronCore generation that has it.
    """

    name: str
    binary: Callable[[Any, Any], Any] | None = None
    unary: Callable[[Any], Any] | None = None
    activation: Callable[[Any], Any] | None = None
    valid: tuple[float, float] | None = None
    reduction: np.ufunc | None = None
    bits: bool = False
    since: int = 2
    symmetric: bool = False

    def __repr__(self) -> str:
        return f"nl.{self.name}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the experimental ``nl.<op>(x, y)`` wrappers are not emulated."""
        fail(Limit.UNSUPPORTED, f"nl.{self.name}", "operators are arguments of nisa instructions here, not functions")


def _as_float(fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: fn(a, b).astype(np.float32)


def _sigmoid(x: Any) -> Any:
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + np.float32(1))


def _abs_pick(keep_larger: bool) -> Callable[[Any, Any], Any]:
    def pick(a: Any, b: Any) -> Any:
        first = np.abs(a) > np.abs(b) if keep_larger else np.abs(a) < np.abs(b)
        return np.where(first, a, b)

    return pick


_C = math.sqrt(2 / math.pi)


def _gelu(x: Any) -> Any:
    return np.float32(0.5) * x * (np.float32(1) + _erf(x / np.float32(math.sqrt(2))))


def _gelu_dx(x: Any) -> Any:
    cdf = np.float32(0.5) * (np.float32(1) + _erf(x / np.float32(math.sqrt(2))))
    return cdf + x * np.exp(-x * x / 2) * np.float32(1 / math.sqrt(2 * math.pi))


def _gelu_tanh(x: Any) -> Any:
    return np.float32(0.5) * x * (1 + np.tanh(np.float32(_C) * (x + np.float32(0.044715) * x * x * x)))


def _gelu_sigmoid(x: Any) -> Any:
    return x * _sigmoid(np.float32(1.702) * x)


def _gelu_sigmoid_dx(x: Any) -> Any:
    s = _sigmoid(np.float32(1.702) * x)
    return s + np.float32(1.702) * x * s * (1 - s)


def _silu_dx(x: Any) -> Any:
    s = _sigmoid(x)
    return s + x * s * (1 - s)


def _softplus(x: Any) -> Any:
    return np.logaddexp(x, np.float32(0))


_ALL = (
    Op("add", np.add, reduction=np.add),
    Op("subtract", np.subtract, reduction=np.subtract),
    Op("multiply", np.multiply, reduction=np.multiply),
    Op("maximum", np.maximum, reduction=np.maximum),
    Op("minimum", np.minimum, reduction=np.minimum),
    Op("equal", _as_float(np.equal)),
    Op("not_equal", _as_float(np.not_equal)),
    Op("greater", _as_float(np.greater)),
    Op("greater_equal", _as_float(np.greater_equal)),
    Op("less", _as_float(np.less)),
    Op("less_equal", _as_float(np.less_equal)),
    Op("logical_and", _as_float(np.logical_and), reduction=np.logical_and),
    Op("logical_or", _as_float(np.logical_or), reduction=np.logical_or),
    Op("logical_xor", _as_float(np.logical_xor), reduction=np.logical_xor),
    Op("power", np.power),
    Op("abs_max", _abs_pick(True), since=4),
    Op("abs_min", _abs_pick(False), since=4),
    Op("bitwise_and", np.bitwise_and, reduction=np.bitwise_and, bits=True),
    Op("bitwise_or", np.bitwise_or, reduction=np.bitwise_or, bits=True),
    Op("bitwise_xor", np.bitwise_xor, reduction=np.bitwise_xor, bits=True),
    Op("invert", unary=np.invert, bits=True),
    Op("left_shift", np.left_shift, bits=True),
    Op("right_shift", np.right_shift, bits=True),
    Op("abs", unary=np.abs, activation=np.abs),
    Op("square", unary=np.square, activation=np.square),
    Op("relu", unary=lambda x: np.maximum(x, 0), activation=lambda x: np.maximum(x, 0)),
    Op(
        "rsqrt",
        unary=lambda x: np.float32(1) / np.sqrt(x),
        activation=lambda x: np.float32(1) / np.sqrt(x),
        valid=(2.0**-87, 2.0**97),
    ),
    Op(
        "reciprocal",
        unary=np.reciprocal,
        activation=np.reciprocal,
        valid=(2.0**-42, 2.0**42),
        symmetric=True,
    ),
    Op("copy", activation=lambda x: x),
    Op("sigmoid", activation=_sigmoid),
    Op("gelu", activation=_gelu),
    Op("gelu_dx", activation=_gelu_dx),
    Op("gelu_apprx_tanh", activation=_gelu_tanh),
    Op("gelu_apprx_sigmoid", activation=_gelu_sigmoid),
    Op("gelu_apprx_sigmoid_dx", activation=_gelu_sigmoid_dx),
    Op("silu", activation=lambda x: x * _sigmoid(x)),
    Op("silu_dx", activation=_silu_dx),
    Op("tanh", activation=np.tanh),
    Op("softplus", activation=_softplus),
    Op("mish", activation=lambda x: x * np.tanh(_softplus(x))),
    Op("erf", activation=_erf),
    Op("erf_dx", activation=lambda x: np.exp(-x * x) * np.float32(2 / math.sqrt(math.pi))),
    Op("exp", activation=np.exp),
    Op("log", activation=np.log, valid=(2.0**-64, 2.0**64)),
    Op("sin", activation=np.sin, valid=(-math.pi, math.pi)),
    Op("arctan", activation=np.arctan, valid=(-math.pi / 2, math.pi / 2)),
    Op("sqrt", activation=np.sqrt, valid=(2.0**-116, 2.0**118)),
    Op("sign", activation=np.sign),
    Op("average"),
    Op("bypass"),
)
BY_NAME: dict[str, Op] = {op.name: op for op in _ALL}


def need_op(op: Any, instruction: str, role: str = "op") -> Op:
    """Return ``op`` if it is an operator token, else refuse."""
    if not isinstance(op, Op):
        fail(Limit.OPERATOR, instruction, f"{role}={op!r} is no nki.language operator")
    return op


def need_arithmetic(op: Any, instruction: str, generation: int, role: str = "op", unary: bool = False) -> Op:
    """Return ``op`` if an ALU can apply it to float32 values, else refuse."""
    found = need_op(op, instruction, role)
    usable = found.binary is not None or (unary and found.unary is not None)
    if not usable or found.bits:
        fail(Limit.OPERATOR, instruction, f"{role}={found!r} is no arithmetic operator of this instruction")
    if found.since > generation:
        fail(Limit.ARCH, instruction, f"{role}={found!r} needs NeuronCore-v{found.since}, this is v{generation}")
    return found
