"""Arguments for the canonical ops from a few sizes: without data to model a call, or with random values to check one.

Sizes have the names of `Site.shapes`. `bench`, `kernels profile` and `verify` build their calls here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from fluxrewrite.errors import InputError

__all__ = [
    "SAMPLES",
    "Sample",
    "arguments",
    "complete",
    "facts",
    "flops",
    "options",
    "sample",
    "traffic",
]

Sizes = Mapping[str, int]
EPS = 1e-6


class Make:
    """Makes tensors of normally distributed numbers, from another seed each, or without data on the device "meta"."""

    def __init__(self, dtype: torch.dtype, device: str, seed: int, logits: float) -> None:
        self.dtype, self.device, self.logits = dtype, device, logits
        self._seeds: Iterator[int] = count(seed * 1000)

    def __call__(self, *shape: int, factor: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of `shape`, standard deviation `factor`, of `dtype` or that of the call."""
        if self.device == "meta":
            return torch.empty(shape, dtype=dtype or self.dtype, device="meta")
        generator = torch.Generator().manual_seed(next(self._seeds))
        values = torch.randn(shape, generator=generator) * factor
        return values.to(dtype or self.dtype).to(self.device)

    def table(self, rows: int, width: int, repeat: bool | None) -> tuple[Tensor, Tensor]:
        """Cosines and sines [rows, width] in float32; a pair's values are adjacent (`repeat`) or half a row apart."""
        if self.device == "meta":
            return self(rows, width, dtype=torch.float32), self(rows, width, dtype=torch.float32)
        angles = self(rows, width if repeat is None else width // 2, factor=3.0, dtype=torch.float32)
        if repeat is not None:
            angles = angles.repeat_interleave(2, -1) if repeat else torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()


@dataclass(frozen=True)
class Sample:
    """How the arguments of one op follow from sizes.

    Attributes:
        defaults: sizes by name; 0 where `complete` derives it from others.
        flags: names whose values are chosen from these instead of counted from 1.
        build: `build(make, sizes)` returns the op's arguments.
        flops: floating-point operations of the matrix products (rope: of the rotation), as the op defines them.
        outputs: elements that the op returns.
    """

    defaults: Sizes
    flags: Mapping[str, tuple[int, ...]]
    build: Callable[[Make, Sizes], tuple[Any, ...]]
    flops: Callable[[Sizes], float]
    outputs: Callable[[Sizes], int]


def _rope(make: Make, n: Sizes) -> tuple[Any, ...]:
    dims = (n["sequence"], n["heads"]) if n["sequence_dim"] == 1 else (n["heads"], n["sequence"])
    x = make(n["batch"], *dims, n["head_size"])
    interleaved = bool(n["interleaved"])
    whole = n["rotary"] == n["head_size"]
    cos, sin = make.table(n["sequence"], n["rotary"], interleaved if whole else None)
    return x, cos, sin, interleaved, n["sequence_dim"], None


def _qkv(make: Make, n: Sizes) -> tuple[Any, ...]:
    widths = [n["query"], n["key"], n["value"]] + [n["rest"]] * bool(n["rest"])
    x = make(n["batch"], n["sequence"], n["hidden"])
    sizes = [sum(widths)] if n["packed"] else widths
    weights = [make(w, n["hidden"], factor=n["hidden"] ** -0.5) for w in sizes]
    starts = [sum(widths[:i]) for i in range(len(widths))]
    pieces = [(0, s, w) if n["packed"] else (i, 0, w) for i, (s, w) in enumerate(zip(starts, widths, strict=True))]
    return x, weights, [make(w) if n["bias"] else None for w in sizes], [number for piece in pieces for number in piece]


def _columns(n: Sizes) -> int:
    return n["query"] + n["key"] + n["value"] + n["rest"]


def _attention(make: Make, n: Sizes) -> tuple[Any, ...]:
    layout = "bshd" if n["bshd"] else "bhsd"

    def heads(count: int, length: int) -> Tensor:
        shape = (length, count) if n["bshd"] else (count, length)
        return make(n["batch"], *shape, n["head_size"])

    q, k, v = (heads(*s) for s in ((n["heads"], n["sequence"]), *((n["kv_heads"], n["kv_sequence"]),) * 2))
    mask = None
    if n["mask"]:
        mask = make(n["sequence"], n["kv_sequence"], dtype=torch.float32)
        mask = torch.empty_like(mask, dtype=torch.bool) if n["mask"] == 2 and make.device == "meta" else mask
        mask = mask > -0.7 if n["mask"] == 2 and make.device != "meta" else mask
    if make.logits:
        # Equal keys share a weight: with large scores, nearly every row would otherwise have a single key.
        twins = k if n["bshd"] else k.transpose(1, 2)
        twins[:, 1::4] = twins[:, ::4][:, : twins[:, 1::4].shape[1]]
    scale = _scale_for(q, k, n, make.logits) if make.logits else None
    return q, k, v, mask, scale, bool(n["causal"]), layout, layout


def _scale_for(q: Tensor, k: Tensor, n: Sizes, logits: float) -> float:
    """The scale with which the greatest scaled score is `logits`."""
    q, k = (t.transpose(1, 2) if n["bshd"] else t for t in (q, k))
    k = k.repeat_interleave(n["heads"] // n["kv_heads"], 1)
    return logits / float((q.float() @ k.float().transpose(-1, -2)).abs().max())


def _norm_rope_attention(make: Make, n: Sizes) -> tuple[Any, ...]:
    lengths = [t for t in (n["text"], n["sequence"] - n["text"]) if t]
    q, k, v = ([make(n["batch"], s, n["heads"], n["head_size"]) for s in lengths] for _ in range(3))
    gain = math.sqrt(make.logits / math.sqrt(n["head_size"])) if make.logits else 1.0
    if make.logits:
        for a, b in zip(
            q, k, strict=True
        ):  # aligned with a key of their own place, whose score is the greatest there is
            b[:, ::16], b[:, 8::16] = a[:, ::16], -a[:, 8::16]
    gammas = [_gains(make, n["head_size"], gain) for _ in range(2 * len(lengths))]
    tables = make.table(n["sequence"], n["head_size"], bool(n["interleaved"]))
    gamma_q, gamma_k = gammas[: len(lengths)], gammas[len(lengths) :]
    return q, k, v, gamma_q, gamma_k, [EPS] * len(lengths), *tables, bool(n["interleaved"]), None


def _gains(make: Make, size: int, gain: float) -> Tensor:
    """Norm weights: `gain` for all lanes if logits are to be of one size, else about 1."""
    if make.device == "meta":
        return make(size)
    if make.logits:
        return torch.full((size,), gain, dtype=make.dtype)
    return (1 + make(size, factor=0.3, dtype=torch.float32)).to(make.dtype)


def _attention_flops(n: Sizes) -> float:
    rows, keys = n["sequence"], n["kv_sequence"]
    full = min(rows, keys)
    seen = full * (full + 1) / 2 + max(rows - keys, 0) * keys if n["causal"] else rows * keys
    return 4.0 * n["batch"] * n["heads"] * seen * n["head_size"]


_FLAG = (0, 1)
SAMPLES: Mapping[str, Sample] = {
    "rope": Sample(
        {"batch": 1, "sequence": 768, "heads": 24, "head_size": 128, "interleaved": 1, "sequence_dim": 1, "rotary": 0},
        {"interleaved": _FLAG, "sequence_dim": (1, 2)},
        _rope,
        lambda n: 3.0 * n["batch"] * n["sequence"] * n["heads"] * n["head_size"],
        lambda n: n["batch"] * n["sequence"] * n["heads"] * n["head_size"],
    ),
    "qkv": Sample(
        {"batch": 1, "sequence": 768, "hidden": 3072, "query": 3072, "key": 0, "value": 0, "bias": 0}
        | {"packed": 0, "rest": 0},
        {"bias": _FLAG, "packed": _FLAG},
        _qkv,
        lambda n: 2.0 * n["batch"] * n["sequence"] * n["hidden"] * _columns(n),
        lambda n: n["batch"] * n["sequence"] * _columns(n),
    ),
    "attention": Sample(
        {"batch": 1, "heads": 24, "kv_heads": 0, "sequence": 768, "kv_sequence": 0, "head_size": 128}
        | {"causal": 0, "mask": 0, "bshd": 0},
        {"causal": _FLAG, "mask": (0, 1, 2), "bshd": _FLAG},
        _attention,
        _attention_flops,
        lambda n: n["batch"] * n["heads"] * n["sequence"] * n["head_size"],
    ),
    "norm_rope_attention": Sample(
        {"batch": 1, "heads": 24, "sequence": 768, "text": 0, "head_size": 128, "interleaved": 1, "bounded": 0},
        {"interleaved": _FLAG, "bounded": _FLAG},
        _norm_rope_attention,
        lambda n: 4.0 * n["batch"] * n["heads"] * n["sequence"] ** 2 * n["head_size"],
        lambda n: n["batch"] * n["heads"] * n["sequence"] * n["head_size"],
    ),
}
"""Ops by name. mask: 1 added to the scores, 2 boolean; text: tokens of a first stream, 0 for one stream; rotary: width
of the tables; bshd: heads after positions; bounded: the mode for scores known to be small; packed: one weight for all;
rest: rows of a packed weight that belong to no projection, or the rows of a separate weight."""

_DERIVED = {"rotary": "head_size", "key": "query", "value": "key", "kv_heads": "heads", "kv_sequence": "sequence"}


def sample(name: str) -> Sample:
    """The sample of the op `name`. Raises InputError for an op that has none."""
    if name not in SAMPLES:
        raise InputError(f"no sample arguments for kernel {name!r}; there are some for {', '.join(sorted(SAMPLES))}")
    return SAMPLES[name]


def complete(name: str, given: Sizes) -> dict[str, int]:
    """All sizes of a call of the op `name`: `given`, the defaults of the others, and what follows from other sizes.

    Raises InputError for unknown names and sizes that do not fit each other.
    """
    found = sample(name)
    unknown = [key for key in given if key not in found.defaults]
    if unknown:
        raise InputError(f"{name} has no size {unknown[0]!r}; known: {', '.join(found.defaults)}")
    sizes = {**found.defaults, **given}
    for key, source in _DERIVED.items():
        if key in sizes and key not in given:
            sizes[key] = sizes[source]
    for key, value in sizes.items():
        values = found.flags.get(key)
        if values is not None and value not in values:
            raise InputError(f"{key}={value}: it is {' or '.join(map(str, values))}")
        if values is None and value < (0 if key in ("text", "rest") else 1):
            raise InputError(f"{key}={value}: sizes are 1 or more")
    _consistent(sizes)
    return sizes


def _consistent(n: Sizes) -> None:
    """Raise InputError for sizes that no call of the op can have together."""
    if n["heads"] % n["kv_heads"] if "kv_heads" in n else 0:
        raise InputError(f"heads={n['heads']} is not a multiple of kv_heads={n['kv_heads']}")
    if n.get("text", 0) >= n.get("sequence", 1):
        raise InputError(f"text={n['text']} leaves no image tokens of sequence={n['sequence']}, which counts both")
    if "rotary" in n and n["rotary"] not in (n["head_size"], n["head_size"] // 2):
        raise InputError(
            f"rotary={n['rotary']}: tables are as wide as a head or half of it, head_size={n['head_size']}"
        )
    if "interleaved" in n and n.get("head_size", 2) % 2:
        raise InputError(f"head_size={n['head_size']}: rope rotates pairs, so it is even")


def arguments(
    name: str, sizes: Sizes, dtype: torch.dtype, device: str = "meta", seed: int = 0, logits: float = 0.0
) -> tuple[Any, ...]:
    """Arguments of the op `name` for `complete` sizes.

    Args:
        name: of the op; `sizes`: as `complete` returns them.
        dtype: of activations and weights; rotary tables and additive masks are float32.
        device: "meta" for no data, else "cpu".
        seed: of the random numbers.
        logits: when above 0, scale the inputs of attention so that the greatest scaled scores are about +-`logits`.
    """
    return sample(name).build(Make(dtype, device, seed, logits), sizes)


def options(name: str, sizes: Sizes) -> dict[str, Any]:
    """Options of a launch besides the op's arguments that the sizes call for: `is_bounded` for norm_rope_attention."""
    return {"is_bounded": True} if sizes.get("bounded") else {}


def facts(name: str, sizes: Sizes) -> dict[str, int | float | str | None]:
    """The facts that limits of kernels refer to, under the names of `Site.shapes` and `Site.facts`."""
    known: dict[str, int | float | str | None] = dict(sizes)
    if name in ("attention", "norm_rope_attention"):
        known["scale"] = sizes["head_size"] ** -0.5
        known["mask"] = ("none", "additive", "bool")[sizes.get("mask", 0)]
        known["value_size"] = sizes["head_size"]
    if name in ("rope", "norm_rope_attention"):
        known.update(table_dtype="float32", table_batch=1)
    if name == "qkv":
        known["columns"] = sizes["query"] + sizes["key"] + sizes["value"]
    if name == "norm_rope_attention":
        length = sizes["sequence"]
        known.update(kv_heads=sizes["heads"], kv_sequence=length, streams=2 if sizes["text"] else 1, eps=EPS)
    return known


def flops(name: str, sizes: Sizes) -> float:
    """Floating-point operations by which the op is defined: of its matrix products, or of the rotation for rope."""
    return sample(name).flops(sizes)


def traffic(name: str, sizes: Sizes, dtype: torch.dtype) -> int:
    """Bytes that a call must move at least: every operand read once, every result written once."""

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.numel() * value.element_size()
        return sum(map(size, value)) if isinstance(value, (tuple, list)) else 0

    read = sum(map(size, arguments(name, sizes, dtype)))
    return read + sample(name).outputs(sizes) * dtype.itemsize
