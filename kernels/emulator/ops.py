"""Operators of ``nki.language``: what ALUs and the Scalar engine's function table can apply.

Sources: tables ``tbl-aluop`` and ``tbl-act-func`` in ``nki/api/nki.api.shared.rst`` (SDK 2.32).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import HardwareLimit, fail

_erf = np.vectorize(math.erf, otypes=[np.float32])


@dataclass(frozen=True, eq=False)
class AluOp:
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
        fail(
            HardwareLimit.UNSUPPORTED,
            f"nl.{self.name}",
            "operators are arguments of nisa instructions here, not functions",
        )


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
    AluOp("add", np.add, reduction=np.add),
    AluOp("subtract", np.subtract, reduction=np.subtract),
    AluOp("multiply", np.multiply, reduction=np.multiply),
    AluOp("maximum", np.maximum, reduction=np.maximum),
    AluOp("minimum", np.minimum, reduction=np.minimum),
    AluOp("equal", _as_float(np.equal)),
    AluOp("not_equal", _as_float(np.not_equal)),
    AluOp("greater", _as_float(np.greater)),
    AluOp("greater_equal", _as_float(np.greater_equal)),
    AluOp("less", _as_float(np.less)),
    AluOp("less_equal", _as_float(np.less_equal)),
    AluOp("logical_and", _as_float(np.logical_and), reduction=np.logical_and),
    AluOp("logical_or", _as_float(np.logical_or), reduction=np.logical_or),
    AluOp("logical_xor", _as_float(np.logical_xor), reduction=np.logical_xor),
    AluOp("power", np.power),
    AluOp("abs_max", _abs_pick(True), since=4),
    AluOp("abs_min", _abs_pick(False), since=4),
    AluOp("bitwise_and", np.bitwise_and, reduction=np.bitwise_and, bits=True),
    AluOp("bitwise_or", np.bitwise_or, reduction=np.bitwise_or, bits=True),
    AluOp("bitwise_xor", np.bitwise_xor, reduction=np.bitwise_xor, bits=True),
    AluOp("invert", unary=np.invert, bits=True),
    AluOp("left_shift", np.left_shift, bits=True),
    AluOp("right_shift", np.right_shift, bits=True),
    AluOp("abs", unary=np.abs, activation=np.abs),
    AluOp("square", unary=np.square, activation=np.square),
    AluOp("relu", unary=lambda x: np.maximum(x, 0), activation=lambda x: np.maximum(x, 0)),
    AluOp(
        "rsqrt",
        unary=lambda x: np.float32(1) / np.sqrt(x),
        activation=lambda x: np.float32(1) / np.sqrt(x),
        valid=(2.0**-87, 2.0**97),
    ),
    AluOp(
        "reciprocal",
        unary=np.reciprocal,
        activation=np.reciprocal,
        valid=(2.0**-42, 2.0**42),
        symmetric=True,
    ),
    AluOp("copy", activation=lambda x: x),
    AluOp("sigmoid", activation=_sigmoid),
    AluOp("gelu", activation=_gelu),
    AluOp("gelu_dx", activation=_gelu_dx),
    AluOp("gelu_apprx_tanh", activation=_gelu_tanh),
    AluOp("gelu_apprx_sigmoid", activation=_gelu_sigmoid),
    AluOp("gelu_apprx_sigmoid_dx", activation=_gelu_sigmoid_dx),
    AluOp("silu", activation=lambda x: x * _sigmoid(x)),
    AluOp("silu_dx", activation=_silu_dx),
    AluOp("tanh", activation=np.tanh),
    AluOp("softplus", activation=_softplus),
    AluOp("mish", activation=lambda x: x * np.tanh(_softplus(x))),
    AluOp("erf", activation=_erf),
    AluOp("erf_dx", activation=lambda x: np.exp(-x * x) * np.float32(2 / math.sqrt(math.pi))),
    AluOp("exp", activation=np.exp),
    AluOp("log", activation=np.log, valid=(2.0**-64, 2.0**64)),
    AluOp("sin", activation=np.sin, valid=(-math.pi, math.pi)),
    AluOp("arctan", activation=np.arctan, valid=(-math.pi / 2, math.pi / 2)),
    AluOp("sqrt", activation=np.sqrt, valid=(2.0**-116, 2.0**118)),
    AluOp("sign", activation=np.sign),
    AluOp("average"),
    AluOp("bypass"),
)
BY_NAME: dict[str, AluOp] = {op.name: op for op in _ALL}


def need_op(op: Any, instruction: str, role: str = "op") -> AluOp:
    """Return ``op`` if it is an operator token, else refuse."""
    if not isinstance(op, AluOp):
        fail(HardwareLimit.OPERATOR, instruction, f"{role}={op!r} is no nki.language operator")
    return op


def need_arithmetic(op: Any, instruction: str, generation: int, role: str = "op", unary: bool = False) -> AluOp:
    """Return ``op`` if an ALU can apply it to float32 values, else refuse."""
    found = need_op(op, instruction, role)
    usable = found.binary is not None or (unary and found.unary is not None)
    if not usable or found.bits:
        fail(HardwareLimit.OPERATOR, instruction, f"{role}={found!r} is no arithmetic operator of this instruction")
    if found.since > generation:
        fail(
            HardwareLimit.ARCH, instruction, f"{role}={found!r} needs NeuronCore-v{found.since}, this is v{generation}"
        )
    return found
