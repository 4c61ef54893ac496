"""Kernels that failed in this process, so that no other graph tries them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..errors import KernelCall, call_of, one_line, signature
from ..fusion.boundary.boundaries import calls_of
from ..graph.fake_values import value_of
from ..graph.view import GraphView
from ..kernel import Kernel
from ..rewrite.base import Replacement
from ..site import Site

__all__ = ["Failure", "Failures", "Key", "blamed", "first_run", "writes_inputs"]

Key = tuple[object, ...]


@dataclass(frozen=True)
class Failure:
    """When a kernel failed ("compile" or "first run"), and how, in one line."""

    kernel: str
    moment: str
    cause: str

    def __str__(self) -> str:
        return f"kernel {self.kernel} failed at {self.moment}: {self.cause}"


class Failures:
    """Kernels that failed, by kernel and by form, sizes and dtype of the site."""

    def __init__(self) -> None:
        self._known: dict[Key, Failure] = {}

    def of(self, site: Site, kernel: Kernel) -> Failure | None:
        """How this kernel failed at a site like this one; None if it did not."""
        return self._known.get(_key(site, kernel))

    def add(self, blame: Iterable[Replacement], moment: str, error: BaseException) -> list[Key]:
        """Remember that the kernels of these sites failed. Returns what `forget` takes."""
        added = []
        for item in blame:
            if item.kernel is not None:
                added.append(_key(item.site, item.kernel))
                self._known[added[-1]] = Failure(item.kernel.name, moment, _cause(error))
        return added

    def forget(self, keys: Iterable[Key]) -> None:
        """Forget failures that turned out not to be the kernels' fault."""
        for key in keys:
            self._known.pop(key, None)


def _key(site: Site, kernel: Kernel) -> Key:
    of_site = (site.kind, site.form, tuple(site.shapes.items()), site.dtype)
    return (kernel.name, kernel.provider, kernel.execution, *of_site)


def _cause(error: BaseException) -> str:
    """The innermost error in one line."""
    return one_line(_chain(error)[-1])


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = [error]
    while found[-1].__cause__ is not None:
        found.append(found[-1].__cause__)
    return found


def blamed(
    error: BaseException, taken: Sequence[Replacement], rewritten: GraphModule
) -> tuple[list[Replacement], bool]:
    """The sites whose kernels caused an error, and whether that is certain.

    The launch of a kernel marks its errors with the call. An error without a mark may come from any kernel, so all are blamed.

    Args:
        error: as the inner backend or the compiled graph raised it.
        taken: what was rewritten.
        rewritten: the graph with the calls.
    """
    kernels = [item for item in taken if item.kernel is not None]
    call: KernelCall | None = next(filter(None, map(call_of, _chain(error))), None)
    mine = [
        item for item in kernels if call is not None and item.kernel is not None and item.kernel.name == call.kernel
    ]
    if call is None or not mine:
        return kernels, False
    nodes = calls_of(GraphView(rewritten.graph), [item.site for item in mine])
    same = [item for item, node in zip(mine, nodes, strict=True) if node is not None and _given(node) == call.signature]
    return same or mine, True


def _given(node: Node) -> Any:
    args = torch.fx.node.map_arg(node.args, value_of)
    return signature(args)


def writes_inputs(gm: GraphModule) -> bool:
    """Whether a graph modifies what it is given, so that it cannot simply be run again."""
    view = GraphView(gm.graph)
    return view.written(gm.graph.find_nodes(op="placeholder"), -1, len(view.nodes)) is not None


def first_run(
    compiled: Callable[..., Any], after: Callable[[Exception, Sequence[Any]], Callable[..., Any]]
) -> Callable[..., Any]:
    """`compiled`, and where its first run fails what `after(error, inputs)` answers, from then on.

    The first run is waited for: a device says only then what went wrong. Other threads wait for it too.
    """
    proven, current, first = False, compiled, threading.RLock()

    def run(*inputs: Any) -> Any:
        nonlocal proven, current
        if proven:
            return current(*inputs)
        with first:
            if proven:
                return current(*inputs)
            try:
                result = current(*inputs)
                _wait({t.device.type for t in inputs if isinstance(t, torch.Tensor)})
            except Exception as error:
                current = after(error, inputs)
                result = current(*inputs)
            proven = True
            return result

    return run


def _wait(devices: set[str]) -> None:
    """Wait until what was begun on these types of device is done."""
    if "xla" in devices:
        import torch_xla

        torch_xla.sync(wait=True)
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type in devices:
        torch.accelerator.synchronize()
