"""A model's graphs as Dynamo makes them, traced with fake tensors: no weights, no computation."""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .errors import InputError
from .models import ModelSpec, Shapes

__all__ = ["Break", "Capture", "capture", "capture_spec"]


@dataclass(frozen=True)
class Break:
    """A graph break: where Dynamo had to stop tracing, and why."""

    reason: str
    location: str


@dataclass(frozen=True)
class Capture:
    """The Dynamo graphs of one call of a model, in the order in which they were made."""

    graphs: tuple[GraphModule, ...]
    breaks: tuple[Break, ...]
    parameters: int
    dtype: torch.dtype | None


def capture_spec(spec: ModelSpec, shapes: Shapes, dtype: torch.dtype, dynamic: bool = False) -> Capture:
    """Build the model under fake tensors in `dtype` and trace it. Raises InputError when it cannot be built or run."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv() if dynamic else None)
    with mode, _default_dtype(dtype):
        model, inputs = spec.build(shapes, dtype)
    return capture(model, inputs, dynamic=dynamic, mode=mode)


def capture(
    model: torch.nn.Module | Callable[..., Any],
    inputs: Mapping[str, Any],
    dynamic: bool = False,
    mode: FakeTensorMode | None = None,
) -> Capture:
    """Trace `model(**inputs)` under `torch.no_grad()`.

    Parameters, buffers and tensor inputs are replaced by fake ones for the time of the trace: nothing is computed and the
    model is left as it was. Every graph break starts a new graph; all are kept.

    Args:
        model: a module or function.
        inputs: keyword arguments.
        dynamic: trace with symbolic sizes.
        mode: the fake mode that fake parameters or inputs already belong to.

    Raises:
        InputError: the model raised while it was traced.
    """
    mode = mode or FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv() if dynamic else None)
    graphs: list[GraphModule] = []

    def collect(gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        return gm.forward

    tensors = [t for t in _tensors(model)]
    dtypes = [t.dtype for t in tensors if t.dtype.is_floating_point]
    parameters = sum(p.numel() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0
    with _faked(model, mode), mode, torch.no_grad():
        fake_inputs = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: _fake(t, mode), dict(inputs))
        try:
            torch.compile(_fresh_entry(model), backend=collect, dynamic=dynamic)(fake_inputs)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise InputError(f"the model failed while it was traced: {type(error).__name__}: {first}") from error
    return Capture(tuple(graphs), tuple(_breaks(graphs)), parameters, max(dtypes, key=dtypes.count, default=None))


def _tensors(model: Any) -> Iterator[torch.Tensor]:
    if isinstance(model, torch.nn.Module):
        yield from itertools.chain(model.parameters(), model.buffers())


def _breaks(graphs: list[GraphModule]) -> Iterator[Break]:
    for gm in graphs:
        reason = getattr(gm, "compile_subgraph_reason", None)
        if reason is not None and getattr(reason, "graph_break", False):
            frames = [f for f in reason.user_stack if "<fluxrewrite>" not in f.filename]
            where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
            yield Break((str(reason.reason).strip().splitlines() or [""])[0], where)


def _fresh_entry(model: Any) -> Callable[[dict[str, Any]], Any]:
    """A function with code of its own that calls the model, so that nothing of an earlier trace is found in Dynamo's cache."""

    def entry(inputs: dict[str, Any]) -> Any:
        return model(**inputs)

    code = entry.__code__.replace(co_filename="<fluxrewrite>")
    return types.FunctionType(code, entry.__globals__, "entry", None, entry.__closure__)


def _fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    return tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor, static_shapes=mode.shape_env is None)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _faked(model: Any, mode: FakeTensorMode) -> Iterator[None]:
    """Fake parameters and buffers in place of real ones, shared ones staying shared; all put back at the end."""
    saved: list[tuple[dict[str, Any], str, Any]] = []
    fakes: dict[int, torch.Tensor] = {}
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    tables: list[dict[str, Any]] = [table for m in modules for table in (m._parameters, m._buffers)]
    try:
        for table in tables:
            for name, value in list(table.items()):
                if value is None or isinstance(value, FakeTensor):
                    continue
                if id(value) not in fakes:
                    fake = mode.from_tensor(value.detach(), static_shapes=True)
                    is_parameter = isinstance(value, torch.nn.Parameter)
                    fakes[id(value)] = torch.nn.Parameter(fake, value.requires_grad) if is_parameter else fake
                saved.append((table, name, value))
                table[name] = fakes[id(value)]
        yield
    finally:
        for table, name, value in saved:
            table[name] = value
