"""Guards for sites of every kind: autocast, memory that is shared and written, tensor subclasses."""

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
    """Why a site is left alone whose operations run under different settings of torch.autocast; None if all are the same."""
    value = view.tensor(site.outputs[0])
    if value is None or not any(view.with_op("_enter_autocast")):
        return None
    regimes = view.memo(("autocast", value.device), lambda v: _regimes(v.nodes, value.device.type))
    nodes = (*site.interior, *site.outputs, site.before)
    first = next((n for n in nodes if regimes[view.order(n)] != regimes[view.order(nodes[0])]), None)
    if first is None:
        return None
    message = f"{first.name} and {nodes[0].name} run under different settings of torch.autocast; a call has one"
    return Reason(Code.AUTOCAST, message, first.name)


def regime(graph: Graph, at: Node, device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Makes context managers that set torch.autocast as it is just before the node `at`.

    Args:
        graph: the graph.
        at: a node of it.
        device: type of device, such as "cpu".
    """
    if not graph.find_nodes(op="call_function", target=torch.amp.autocast_mode._enter_autocast):
        return nullcontext
    nodes = tuple(graph.nodes)
    dtype = _regimes(nodes, device)[nodes.index(at)]
    return partial(torch.autocast, device, dtype=dtype, enabled=dtype is not None)


def _regimes(nodes: Sequence[Node], device: str) -> list[torch.dtype | None]:
    """For each node, the dtype that autocast of this type of device casts to just before it; None where autocast is off."""
    # A graph that was traced inside an autocast block has no node for it. Then the setting is the current one of the thread.
    enabled_outside = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    outside = torch.get_autocast_dtype(device) if enabled_outside else None
    entered: list[tuple[Any, torch.dtype | None]] = [(None, outside)]
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
    """Whether a node only checks the dtype and device of a value. torch.export adds such nodes before casts; they use no value."""
    return node.target is torch.ops.aten._assert_tensor_metadata.default


def shared_and_written(view: GraphView, outputs: Sequence[Node]) -> Reason | None:
    """Why a site is left alone whose results share memory that the graph writes; None if there is no such memory."""
    # Each result of a call has memory of its own, so a write to one would no longer show in the others.
    results_in = Counter(view.memory(n) for n in outputs)
    shared = [n for n in outputs if results_in[view.memory(n)] > 1]
    writer = view.written(shared, 0, len(view.nodes))
    if writer is None:
        return None
    message = f"{writer.name} modifies memory that {len(shared)} results share; results of a call share none"
    return Reason(Code.MUTATION, message, writer.name)


def of_other_class(view: GraphView, site: Site) -> Reason | None:
    """Why a site with a tensor subclass is left alone; None if there is none."""
    # A subclass has its own implementation of each operation, such as one on quantised data, and none of the kernels.
    inside = (*site.interior, *site.outputs)
    for node in dict.fromkeys(n for member in inside for n in (*member.all_input_nodes, member)):
        value = view.value(node)
        if is_traceable_wrapper_subclass(value):
            message = f"{node.name} is a {type(value).__name__}, a tensor class of its own that has no kernels"
            return Reason(Code.SUBCLASS, message, node.name)
    return None
