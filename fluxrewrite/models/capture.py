"""Capture a model's Dynamo graphs with fake tensors: without weights, and without computing anything."""

from __future__ import annotations

import collections
import contextlib
import copy
import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._dynamo.eval_frame import reset_code
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .. import parallel
from ..errors import InputError, one_line
from ..graph.localize import localise, mesh_of
from .registry import ModelSpec, Shapes, default_dtype

__all__ = ["Break", "Capture", "capture", "capture_spec", "fresh_entry", "own_cache_entries"]


@dataclass(frozen=True)
class Break:
    """A graph break: where Dynamo stopped tracing, and why."""

    reason: str
    location: str


@dataclass(frozen=True)
class Capture:
    """The Dynamo graphs of one call of a model; of a divided model, those of one rank.

    Attributes:
        graphs: in the order in which Dynamo made them.
        breaks: the graph breaks between them.
        parameters: number of parameters of the whole model.
        dtype: most frequent float dtype of its parameters and buffers; None without any.
        tp: number of ranks that the model is divided among.
    """

    graphs: tuple[GraphModule, ...]
    breaks: tuple[Break, ...]
    parameters: int
    dtype: torch.dtype | None
    tp: int = 1


def capture_spec(spec: ModelSpec, shapes: Shapes, dtype: torch.dtype, dynamic: bool = False, tp: int = 1) -> Capture:
    """Build a model with fake tensors in `dtype`, and capture it as `capture` does.

    Raises InputError when the model cannot be built, divided or run.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    with mode, default_dtype(dtype):
        model, inputs = spec.build(shapes, dtype)
    return capture(model, inputs, dynamic=dynamic, mode=mode, tp=tp)


def capture(
    model: torch.nn.Module | Callable[..., Any],
    inputs: Mapping[str, Any],
    dynamic: bool = False,
    mode: FakeTensorMode | None = None,
    tp: int = 1,
) -> Capture:
    """Trace `model(**inputs)` under `torch.no_grad()`.

    Parameters, buffers and tensor inputs are replaced by fake tensors during the trace, so nothing is computed and the model is
    left unchanged. Every graph break starts a new graph; all are kept.

    Args:
        model: a module or function.
        inputs: keyword arguments.
        dynamic: trace with symbolic sizes.
        mode: the fake mode of parameters or inputs that are already fake.
        tp: number of ranks to divide the model among, by its `_tp_plan`. The graphs are those of one rank, over a fake process
            group. A model of DTensors is traced as it is.

    Raises:
        InputError: the model raised while it was traced, or cannot be divided.
    """
    mode = mode or FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    graphs: list[GraphModule] = []

    def collect(gm: GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        return gm.forward

    parameters, dtype = _size_and_dtype(model)
    with _faked(model, mode), _divided(model, mode, tp), own_cache_entries(), mode, torch.no_grad():
        fake_inputs = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: _fake(t, mode, dynamic), dict(inputs))
        try:
            torch.compile(fresh_entry(model), backend=collect, dynamic=dynamic)(fake_inputs)
        except (Exception, SystemExit) as error:
            raise InputError(f"the model failed while it was traced: {_cause(error)}") from error
        local = tuple(localise(gm).gm for gm in graphs)  # inside the block, where the fake process group exists
    meshes = [mesh.size() for gm in graphs if (mesh := mesh_of(gm)) is not None]
    return Capture(local, tuple(_breaks(graphs)), parameters, dtype, max(meshes, default=1))


def _size_and_dtype(model: Any) -> tuple[int, torch.dtype | None]:
    """Number of parameters, and the most frequent float dtype. Raises InputError for parameters without a shape."""
    tensors = list(_tensors(model))
    if any(torch.nn.parameter.is_lazy(t) for t in tensors):
        raise InputError(f"{type(model).__name__} has parameters without a shape (lazy modules); run it once first")
    dtypes = [t.dtype for t in tensors if t.dtype.is_floating_point]
    parameters = sum(p.numel() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0
    return parameters, max(dtypes, key=dtypes.count, default=None)


@contextlib.contextmanager
def _divided(model: Any, mode: FakeTensorMode, tp: int) -> Iterator[None]:
    """Divide the model among `tp` ranks, of which only this one exists; `_faked` restores its parameters afterwards."""
    already = parallel.degree(model) if isinstance(model, torch.nn.Module) else 1
    if already > 1 and tp not in (1, already):
        raise InputError(f"tp {tp}: {type(model).__name__} is divided among {already} ranks already; leave tp out")
    if tp == 1 or already > 1:
        yield
        return
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"tp {tp}: a function cannot be divided among ranks; give a module with _tp_plan")
    with parallel.fake_group(tp):
        with mode:
            parallel.shard(model, tp)
        yield


def _cause(error: BaseException) -> str:
    """The innermost error in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


@contextlib.contextmanager
def own_cache_entries() -> Iterator[None]:
    """Remove what Dynamo cached for the code that is traced in the block.

    After a graph break, Dynamo compiles functions of the user. Without this, about eight traces would use up their recompile
    limit, and neither a later trace nor the user's own compile would get a graph.
    """
    met: set[types.CodeType] = set()
    hook = torch._dynamo.convert_frame.register_bytecode_hook(lambda code, _: met.add(code))
    try:
        yield
    finally:
        hook.remove()
        for code in met:
            reset_code(code)


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


def fresh_entry(model: Any) -> Callable[[dict[str, Any]], Any]:
    """A new function that calls the model. Its code is new too, so Dynamo's cache has no entry of an earlier trace for it."""

    def entry(inputs: dict[str, Any]) -> Any:
        return model(**inputs)

    code = entry.__code__.replace(co_filename="<fluxrewrite>")
    return types.FunctionType(code, entry.__globals__, "entry", None, entry.__closure__)


def _fake(tensor: torch.Tensor, mode: FakeTensorMode, dynamic: bool) -> torch.Tensor:
    return tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor, static_shapes=not dynamic)


@contextlib.contextmanager
def _faked(model: Any, mode: FakeTensorMode) -> Iterator[None]:
    """Replace parameters and buffers by fake ones; tensors that are shared stay shared.

    At the end the attributes of every module are restored, and the contents of lists, dicts and sets among them, so that no fake
    tensor that the model stored is left behind.
    """
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    saved = [
        (m, dict(vars(m)), {k: copy.copy(v) for k, v in vars(m).items() if type(v) in _CONTAINERS}) for m in modules
    ]
    fakes: dict[torch.Tensor, torch.Tensor] = {}  # tensors hash by identity
    try:
        for module in modules:
            for table in (module._parameters, module._buffers):
                for name, value in table.items():
                    if value is not None and not isinstance(value, FakeTensor):
                        table[name] = _shared_fake(value, mode, fakes)  # type: ignore[assignment]
        yield
    finally:
        for module, attributes, contents in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                _refill(attributes[name], content)


_CONTAINERS = (list, dict, set, collections.OrderedDict)


def _shared_fake(value: torch.Tensor, mode: FakeTensorMode, fakes: dict[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    if value not in fakes:
        fake = mode.from_tensor(value.detach(), static_shapes=True)
        is_parameter = isinstance(value, torch.nn.Parameter)
        fakes[value] = torch.nn.Parameter(fake, value.requires_grad) if is_parameter else fake
    return fakes[value]


def _refill(container: Any, content: Any) -> None:
    """Restore the content of a list, dict or set in place, since others may hold the object."""
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)
