"""A graph over DTensors turned into the graph of one rank: local shards, and collectives as nodes of their own.

Dynamo's graph of a module under `torch.distributed.tensor.parallel` has DTensors only around each sharded layer:

    before (global shapes)                                    after (what one rank computes)
    x = DTensor.from_local(h, mesh, (Replicate(),))           y = linear(h, w)                     # w is the local shard
    y = linear(x, w)                # w: Shard(0)
    y = y.redistribute((Shard(-1),), async_op=True)
    q = y.to_local()                                          q is y

    x = DTensor.from_local(a, mesh, (Shard(-1),))             y = linear(a, w)
    y = linear(x, w)                # w: Shard(1)             y = _c10d_functional.all_reduce(y, "sum", group)
    y = y.redistribute((Replicate(),), async_op=True)         y = _c10d_functional.wait_tensor(y)
    h = y.to_local()                                          h is y

This happens before anything is matched. There were two alternatives:

- `GraphView` could look through from_local and to_local. Then every reader of shapes (limits, fusion, bytes) would have to
  distinguish global from local sizes, and projections would still return DTensors, which a kernel on shards cannot make.
- Patterns could match after AOTAutograd. That graph has the same local operations, but it has lost the names of modules and the
  operations that patterns are written in.

The collectives are those that DTensor itself would issue, so a rewrite neither adds nor drops one.

Only chains that are known from end to end, as above, are changed. Any other use of a DTensor (`use_local_output=False`, sequence
parallelism, a graph that needs gradients) stays as it was traced. `GraphView` gives no shape for a DTensor, so nothing matches
there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Partial, Placement, Replicate, Shard
from torch.fx import Graph, GraphModule, Node

from .modules import module_with
from .op_table import read

__all__ = ["LocalGraph", "localise", "mesh_of"]


@dataclass(frozen=True)
class LocalGraph:
    """The graph of one rank.

    Attributes:
        traced: the graph as Dynamo made it.
        gm: takes local tensors where the traced graph took DTensors. It is `traced` itself if nothing had to change.
        unwrapped: positions of the inputs that are now local.
    """

    traced: GraphModule
    gm: GraphModule
    unwrapped: tuple[int, ...] = ()

    def inputs(self, given: Sequence[Any]) -> list[Any]:
        """The inputs of `gm` for those of the traced graph."""
        found = list(given)
        for i in self.unwrapped:
            found[i] = _local(found[i])
        return found

    def taking_dtensors(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a compiled `gm` so that it takes the inputs of the traced graph."""
        if not self.unwrapped:
            return compiled

        def run(*given: Any) -> Any:
            return compiled(*self.inputs(given))

        return run


def _local(tensor: DTensor) -> Tensor:
    """This rank's part, complete."""
    found: Tensor = (
        tensor._local_tensor
    )  # to_local() without its autograd node, which a graph without gradients does not need
    return found.wait() if isinstance(found, AsyncCollectiveTensor) else found


def mesh_of(gm: GraphModule) -> Any:
    """The DeviceMesh of the DTensors in a graph; None if it has no DTensor."""
    return next((v.device_mesh for n in gm.graph.nodes if isinstance(v := _value(n), DTensor)), None)


def localise(gm: GraphModule) -> LocalGraph:
    """The graph of one rank. `gm` is not changed."""
    if mesh_of(gm) is None:
        return LocalGraph(gm, gm)
    taken = _taken(gm.graph)
    if not taken:
        return LocalGraph(gm, gm)
    graph = copy.deepcopy(gm.graph)
    twins = dict(zip(gm.graph.nodes, graph.nodes, strict=True))
    inputs = gm.graph.find_nodes(op="placeholder")
    for node in inputs:  # AOTAutograd reads `_dynamo_source` of Dynamo's placeholders, which deepcopy does not copy
        twins[node].__dict__.update({**node.__dict__, "meta": dict(node.meta)})
    biases: dict[Node, Node] = {}
    for node in gm.graph.nodes:
        if node in taken:
            _localise_node(graph, node, twins[node], biases)
    graph.lint()
    return LocalGraph(gm, module_with(gm, graph), tuple(i for i, n in enumerate(inputs) if n in taken))


def _value(node: Node) -> Any:
    return node.meta.get("example_value")


def _placement(node: Any) -> Placement | None:
    """The placement of a DTensor on a mesh of one axis; None for everything else."""
    # One axis is all that tensor parallelism needs. With more, `_reduced` would have to choose among several groups.
    value = _value(node) if isinstance(node, Node) else None
    if not isinstance(value, DTensor) or len(value.placements) != 1:
        return None
    return value.placements[0]


def _taken(graph: Graph) -> set[Node]:
    """The nodes that make or take DTensors, have a local form, and are connected only to DTensor nodes that have one too."""
    wrapped = {n for n in graph.nodes if isinstance(_value(n), DTensor)}
    ends = {u for n in wrapped for u in n.users if u not in wrapped}
    taken = {n for n in (*wrapped, *ends) if _known(n)}
    # A local tensor must never reach a node that still expects a DTensor, or the reverse. So a node that cannot be changed
    # keeps its neighbours, which keep theirs.
    while True:
        lost = {n for n in taken if not _joined(n, wrapped, taken)}
        if not lost:
            return taken
        taken -= lost


def _joined(node: Node, wrapped: set[Node], taken: set[Node]) -> bool:
    """Whether all DTensors that a node reads, and all readers of the DTensor that it makes, are taken as well."""
    read_too = all(n in taken for n in node.all_input_nodes if n in wrapped)
    return read_too and (node not in wrapped or all(u in taken for u in node.users))


def _known(node: Node) -> bool:
    value = _value(node)
    # The backward of a sharded layer has collectives of its own, which that of the local operation would lack.
    if isinstance(value, DTensor) and node.op != "placeholder" and value.requires_grad:
        return False
    if node.op == "placeholder":
        return _placement(node) is not None
    if node.target is DTensor.from_local:
        return _wraps(node)
    if node.op == "call_method" and node.target == "to_local":
        return not node.kwargs and not isinstance(_placement(node.args[0]), Partial)
    if node.op == "call_method" and node.target == "redistribute":
        return _redistributes(node)
    return read(node).op == "linear" and _linear(node) is not None


def _wraps(node: Node) -> bool:
    """Whether this is a `DTensor.from_local` without a broadcast, of a tensor that already is this rank's part."""
    value, local = _value(node), _value(node.args[0]) if isinstance(node.args[0], Node) else None
    same = isinstance(local, Tensor) and not isinstance(local, DTensor)
    return (
        same and node.kwargs.get("run_check") is False and set(node.kwargs) == {"run_check"} and _is_part(value, local)
    )


def _is_part(value: Any, local: Any) -> bool:
    return isinstance(value, DTensor) and value._local_tensor.shape == local.shape


def _redistributes(node: Node) -> bool:
    """Whether a redistribute sends nothing, or reduces partial sums. Other changes of placement have no local form here."""
    before, after = _placement(node.args[0]), _placement(node)
    if before is None or after is None:
        return False
    return before == after or (_sums(before) and isinstance(after, Replicate))


def _sums(placement: Any) -> bool:
    return isinstance(placement, Partial) and placement.reduce_op == "sum"


def _linear(node: Node) -> str | None:
    """How the weight of the layer is divided: "columns", "rows" or "whole"; None for any other way."""
    fact = read(node)
    x, w, b = (fact.args.get(name) for name in ("input", "weight", "bias"))
    out, last = _placement(node), len(_value(node).shape) - 1 if isinstance(_value(node), DTensor) else 0
    places = (_placement(x), _placement(w), None if b is None else _placement(b))
    bias = places[2]
    if places[:2] == (Replicate(), Shard(0)) and out == Shard(last) and (b is None or bias == Shard(0)):
        return "columns"
    # With divided rows each rank has a partial sum. Its bias is whole, so it must be added once, after the reduction.
    whole = b is None or isinstance(bias, Replicate)
    if places[:2] == (Shard(last), Shard(1)) and _sums(out) and whole and _summed_once(node):
        return "rows"
    return "whole" if places[:2] == (Replicate(), Replicate()) and isinstance(out, Replicate) and whole else None


def _summed_once(node: Node) -> bool:
    """Whether partial sums are only reduced. Any other reader would miss the bias, which is added after the reduction."""
    users = list(node.users)
    return len(users) == 1 and users[0].target == "redistribute" and isinstance(_placement(users[0]), Replicate)


def _localise_node(graph: Graph, node: Node, twin: Node, biases: dict[Node, Node]) -> None:
    """Turn `twin`, the copy of a taken node, into its local form. Its inputs are local already.

    Args:
        graph: the graph of `twin`.
        node: the node as traced.
        twin: its copy.
        biases: biases of layers whose results are partial sums, to be added after the reduction.
    """
    value = _value(node)
    if node.op == "placeholder":
        twin.meta["example_value"] = value._local_tensor
        return
    if read(node).op == "linear":
        twin.meta["example_value"] = value._local_tensor
        bias = read(twin).args.get("bias")
        if isinstance(bias, Node) and _sums(_placement(node)):
            biases[twin] = bias
            twin.args, twin.kwargs = (*(read(twin).args[name] for name in ("input", "weight")), None), {}
        return
    (made, *_) = twin.args
    assert isinstance(made, Node)
    if node.target == "redistribute" and _placement(node.args[0]) != _placement(node):
        made = _reduced(graph, twin, made, value.device_mesh, biases.get(made))
    twin.replace_all_uses_with(made)
    graph.erase_node(twin)


def _reduced(graph: Graph, at: Node, sums: Node, mesh: Any, bias: Node | None) -> Node:
    """Insert the reduction of partial sums over all ranks before `at`, and the addition of a bias."""

    def call(target: Callable[..., Any], *args: Any) -> Node:
        with graph.inserting_before(at):
            made = graph.call_function(target, args)
        made.meta.update({k: at.meta[k] for k in ("nn_module_stack", "stack_trace") if k in at.meta})
        with fake.fake_mode, torch.no_grad():
            made.meta["example_value"] = target(*torch.fx.node.map_arg(args, _value))
        return made

    fake = _value(sums)
    ops = torch.ops._c10d_functional
    started = call(ops.all_reduce.default, sums, "sum", mesh.get_group(0).group_name)
    started.meta["ranks"] = mesh.size()
    total = call(ops.wait_tensor.default, started)
    return total if bias is None else call(torch.add, total, bias)
