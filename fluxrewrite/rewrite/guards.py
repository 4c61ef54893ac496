"""Guards of every kind of site: regimes of autocast, memory that is shared and written, tensors of other classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..graph.op_table import read
from ..graph.view import GraphView
from ..site import Code, Reason, Site

__all__ = ["across_autocast", "of_other_class", "only_checks", "regime", "shared_and_written"]


def across_autocast(view: GraphView, site: Site) -> Reason | None:
    """Why a site is left alone that is in one regime of torch.autocast for a part and in another for the rest."""
    value = view.tensor(site.outputs[0])
    if value is None or not any(view.with_op("_enter_autocast")):
        return None
    regimes = view.memo(("autocast", value.device), lambda v: _regimes(v.nodes, value.device.type))
    nodes = (*site.interior, *site.outputs, site.before)
    first = next((n for n in nodes if regimes[view.order(n)] != regimes[view.order(nodes[0])]), None)
    if first is None:
        return None
    message = f"{first.name} runs under other settings of torch.autocast than {nodes[0].name}; one call has one"
    return Reason(Code.AUTOCAST, message, first.name)


def regime(graph: Graph, at: Node, device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What puts torch.autocast of a type of device as it is in front of the node `at` of the graph."""
    if not graph.find_nodes(op="call_function", target=torch.amp.autocast_mode._enter_autocast):
        return nullcontext
    nodes = tuple(graph.nodes)
    dtype = _regimes(nodes, device)[nodes.index(at)]
    return partial(torch.autocast, device, dtype=dtype, enabled=dtype is not None)


def _regimes(nodes: Sequence[Node], device: str) -> list[torch.dtype | None]:
    """The dtype to which autocast of this type of device casts in front of each node; None where it is off."""
    known = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    around = torch.get_autocast_dtype(device) if known else None
    entered: list[tuple[Any, torch.dtype | None]] = [(None, around)]
    found = []
    for node in nodes:
        found.append(entered[-1][1])
        op = read(node).op
        if op == "_enter_autocast" and node.args[0] == device:
            _, dtype, enabled, *_ = node.args
            given = dtype if isinstance(dtype, torch.dtype) else torch.get_autocast_dtype(device)
            entered.append((node, given if enabled else None))
        elif op == "_exit_autocast" and entered[-1][0] is node.args[0]:
            entered.pop()
    return found


def only_checks(node: Node) -> bool:
    """Whether a node only checks the dtype and device of a value, as torch.export does in front of casts: no use of the value."""
    return node.target is torch.ops.aten._assert_tensor_metadata.default


def shared_and_written(view: GraphView, outputs: Sequence[Node]) -> Reason | None:
    """Why results that lie in one memory which the graph writes are left alone: those of a call do not see each other's writes."""
    held = Counter(view.memory(n) for n in outputs)
    shared = [n for n in outputs if held[view.memory(n)] > 1]
    writer = view.written(shared, 0, len(view.nodes))
    if writer is None:
        return None
    message = (
        f"{writer.name} modifies memory that {len(shared)} results share; those of a call have memory of their own"
    )
    return Reason(Code.MUTATION, message, writer.name)


def of_other_class(view: GraphView, site: Site) -> Reason | None:
    """Why a site with a tensor that answers operations itself is left alone."""
    inside = (*site.interior, *site.outputs)
    for node in dict.fromkeys(n for member in inside for n in (*member.all_input_nodes, member)):
        value = view.value(node)
        if is_traceable_wrapper_subclass(value):
            message = f"{node.name} is a {type(value).__name__}, which answers operations itself and knows no kernel"
            return Reason(Code.SUBCLASS, message, node.name)
    return None
