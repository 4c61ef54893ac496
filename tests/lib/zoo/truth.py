"""What a model computes when it runs: attention calls, rotations and projection groups, counted without looking at a graph.

Nothing here knows the passes. Attention is what calls `scaled_dot_product_attention`, `flex_attention`, or a softmax whose result
goes into a matrix product. A rotation is a tensor that one of the model's own rotary functions returns. A projection group is a
set of linear layers that read one tensor and, by autograd's record, are where query, key and value of one attention come from.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import flex_attention
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily

from .case import Case

__all__ = ["Group", "Truth", "observe"]

ROLES = ("query", "key", "value")
_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_PRODUCTS = {
    torch.matmul, torch.bmm, torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.bmm, Tensor.baddbmm, Tensor.__matmul__,
}  # fmt: skip
_PASSING = {
    F.dropout,
    torch.dropout,
    Tensor.to,
    Tensor.type_as,
    Tensor.float,
    Tensor.contiguous,
    Tensor.view,
    Tensor.reshape,
}


@dataclass(frozen=True)
class Group:
    """Linear layers on one input that make query, key and value of one attention (kind "qkv"), or two of them ("kv")."""

    kind: str
    path: str
    layers: tuple[str, ...]


@dataclass
class Truth:
    """What one call of a model did: paths of the modules that hold attention, rotations and groups."""

    attention: list[str] = field(default_factory=list)
    rope: list[str] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


@dataclass(frozen=True)
class _Linear:
    """One call of a linear layer: what it read (kept alive, so that its address stays its own) and the modules it is in."""

    read: Tensor
    frames: tuple[tuple[int, str], ...]

    @property
    def key(self) -> tuple[int, int, torch.Size, int]:
        return self.read.data_ptr(), self.read._version, self.read.shape[-1:], self.read.numel()


class _Frames:
    """The stack of module calls: a number for each call, and the module's path."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.stack: list[tuple[int, str]] = []
        self.calls = 0
        self.hooks = []
        for name, module in model.named_modules():
            self.hooks.append(module.register_forward_pre_hook(self._enter(name)))
            self.hooks.append(module.register_forward_hook(self._leave, always_call=True))

    def _enter(self, name: str) -> Any:
        def hook(*_: Any) -> None:
            self.calls += 1
            self.stack.append((self.calls, name))

        return hook

    def _leave(self, *_: Any) -> None:
        self.stack.pop()

    @property
    def path(self) -> str:
        return self.stack[-1][1] if self.stack else ""

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


class _Watch(TorchFunctionMode):
    """Sees every torch function that the model calls."""

    def __init__(self, frames: _Frames, truth: Truth) -> None:
        super().__init__()
        self.frames, self.truth = frames, truth
        self.linears: dict[Any, _Linear] = {}
        self.products: dict[Any, Sequence[Tensor]] = {}
        self.softmaxes: dict[int, tuple[Tensor, Tensor]] = {}  # by address of what they became: scores, and that

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if any(_unreal(value) for value in (out, *args)):
            return out
        if func is F.scaled_dot_product_attention:
            self.attention(*(_given(args, kwargs, i, name) for i, name in enumerate(ROLES)))
        elif func is F.linear:
            read = _given(args, kwargs, 0, "input")
            self.linears[out.grad_fn] = _Linear(read, tuple(self.frames.stack))
        elif func in _SOFTMAX:
            scores = _given(args, kwargs, 0, "input")
            self.softmaxes[out.data_ptr()] = (scores, out)
        elif func in _PRODUCTS:
            self.product([a for a in args if isinstance(a, Tensor)][-2:], out)
        elif func in _PASSING and args and isinstance(args[0], Tensor) and args[0].data_ptr() in self.softmaxes:
            self.softmaxes[out.data_ptr()] = (self.softmaxes[args[0].data_ptr()][0], out)
        return out

    def product(self, factors: Sequence[Tensor], out: Tensor) -> None:
        """A matrix product: the second of a spelled attention if its first factor is a softmax."""
        self.products[out.grad_fn] = factors
        found = self.softmaxes.get(factors[0].data_ptr()) if len(factors) == 2 else None
        if found is None:
            return
        scores = next(iter(_above(found[0].grad_fn, self.products)), None)
        if scores is not None:
            self.attention(*self.products[scores], factors[1])

    def attention(self, *operands: Tensor) -> None:
        """One attention computation, and the groups of layers that its operands come from."""
        self.truth.attention.append(self.frames.path)
        reached = [[self.linears[n] for n in _above(t.grad_fn, self.linears)] for t in operands]
        frame = self._frame(reached)
        if frame is None:
            return
        inputs: dict[Any, dict[str, set[tuple[tuple[int, str], ...]]]] = {}
        for role, linears in zip(ROLES, reached, strict=True):
            for linear in linears:
                if frame in linear.frames:
                    inputs.setdefault(linear.key, {}).setdefault(role, set()).add(linear.frames)
        for by_role in inputs.values():
            kind = "".join(role[0] for role in ROLES if role in by_role)
            layers = tuple(sorted({frames[-1] for found in by_role.values() for frames in found}))
            group = Group(kind, frame[1], tuple(f"{path}#{call}" for call, path in layers))
            if len(kind) > 1 and group not in self.truth.groups:
                self.truth.groups.append(group)

    def _frame(self, reached: Sequence[Sequence[_Linear]]) -> tuple[int, str] | None:
        """The module around attention, at most two above it, that a layer of its operands is called in."""
        for frame in reversed(self.frames.stack[-3:]):
            if any(frame in linear.frames[:-1] or frame == linear.frames[-1] for found in reached for linear in found):
                return frame
        return None


def _unreal(value: Any) -> bool:
    """Whether a tensor is one of a tracer or of vmap, as inside of flex attention: neither has an address."""
    return isinstance(value, FakeTensor) or (
        isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def _given(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if position < len(args) else kwargs[name]


def _above(start: Any, known: Mapping[Any, Any]) -> list[Any]:
    """The nearest of autograd's nodes above `start` that are `known`."""
    found, seen, pending = [], set(), [start]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in known:
            found.append(node)
        else:
            pending.extend(above for above, _ in node.next_functions)
    return found


def _rotations(names: Sequence[str], frames: _Frames, truth: Truth) -> Any:
    """A profile function that counts what functions of these names return."""
    source = re.compile(r"(diffusers|transformers)[/\\]models[/\\]")

    def profile(frame: Any, event: str, value: Any) -> None:
        if event == "return" and frame.f_code.co_name in names and source.search(frame.f_code.co_filename):
            tensors = value if isinstance(value, (tuple, list)) else [value]
            truth.rope.extend(frames.path for t in tensors if isinstance(t, Tensor))

    return profile


def _flex(watch: _Watch) -> Any:
    """Flex attention that is counted; it has no gradient on the CPU, so autograd's record ends there."""
    original = flex_attention.flex_attention

    def call(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        watch.attention(query, key, value)
        with _pop_mode_temporarily():  # it traces itself, and cannot trace what watches
            return original(query.detach(), key.detach(), value.detach(), *args, **kwargs)

    return mock.patch.object(flex_attention, "flex_attention", call)


def _whole_groups(groups: Sequence[Group]) -> list[Group]:
    """Groups without those that are part of another: key and value that two attentions share, the query of only one of them."""
    return [g for g in groups if not any(set(g.layers) < set(other.layers) for other in groups)]


def observe(case: Case, model: torch.nn.Module, inputs: Mapping[str, Any]) -> tuple[Truth, Any]:
    """Run the model once, with gradients recorded. Returns what it did, and its result."""
    truth = Truth()
    frames = _Frames(model)
    before = sys.getprofile()
    try:
        watch = _Watch(frames, truth)
        with torch.enable_grad(), watch, _flex(watch):
            sys.setprofile(_rotations(case.rotary, frames, truth))
            result = model(**inputs)
    finally:
        sys.setprofile(before)
        frames.remove()
    truth.groups = _whole_groups(truth.groups)
    return truth, result
