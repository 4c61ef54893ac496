"""Sites into calls: what a pass is, how it emits a replacement, and the rewritten copy of a graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.traceback import NodeSource, NodeSourceAction

from .errors import RewriteError
from .graph import GraphView
from .guards import only_checks, regime, shared_and_written
from .kernel import Kernel
from .site import Code, Finding, Inline, Miss, Reason, Site
from .steps import same_shape
from .strides import Strides
from .traced import FakeCalls, fake_run, value_of

__all__ = [
    "Builder",
    "Pass",
    "Replacement",
    "as_module",
    "blocked",
    "copied",
    "dense_as",
    "module_with",
    "needs_grad",
    "odd_dtype",
    "rewrite",
    "rewritten_graph",
]


class Pass:
    """A rewrite: finds its sites in a view and emits the call that replaces one.

    Subclass it in a file of its own and name it in the entry point group `fluxrewrite.passes`.
    """

    kind: ClassVar[str]
    """Name of the pass and of the sites it finds."""
    kernel: ClassVar[str]
    """Name of the kernel that may replace a site."""
    forms: ClassVar[tuple[str, ...]]
    """The forms it knows; a selection may name one of them alone."""
    looks_for: ClassVar[str]
    """One line on what is looked for, shown where nothing was found."""

    def find(self, view: GraphView) -> list[Finding]:
        """All sites and near misses, in graph order. Must not change the graph."""
        raise TypeError(f"{type(self).__name__} does not implement find")

    def emit(self, site: Site, builder: Builder, op: Callable[..., Any]) -> Sequence[Node]:
        """Insert the replacement of `site`, a call of `op`; one new node for each of `site.outputs`."""
        raise TypeError(f"{type(self).__name__} does not implement emit")

    def inline(self, view: GraphView, site: Site) -> Inline | None:
        """What `emit_inline` would write, or None where the site has no such form."""
        return None

    def emit_inline(self, site: Site, builder: Builder) -> Sequence[Node]:
        """Insert plain torch operations that a compiler fuses; one new node for each of `site.outputs`."""
        raise TypeError(f"{type(self).__name__} does not implement emit_inline")

    def miss(self, code: Code, message: str, path: str, node: Node | None = None, form: str = "") -> Miss:
        """A near miss of this pass."""
        return Miss(self.kind, path, Reason(code, message, node.name if node is not None else ""), form)


@dataclass(frozen=True)
class Replacement:
    """A site, the pass that found it and the kernel that takes it; no kernel for a site that is written inline."""

    rewriter: Pass
    site: Site
    kernel: Kernel | None


class Builder:
    """Inserts nodes at one place of a graph. Every new node gets a fake value, module stack, stack trace and origin."""

    def __init__(
        self,
        graph: Graph,
        at: Node,
        site: Site,
        current: Callable[[Any], Any],
        kernel: Kernel | None = None,
        calls: FakeCalls | None = None,
    ) -> None:
        self._graph, self._at, self._site, self._current, self._kernel = graph, at, site, current, kernel
        self._calls = calls or FakeCalls()
        value = value_of(site.outputs[0])
        self._regime = regime(graph, at, value.device.type) if isinstance(value, torch.Tensor) else nullcontext
        self.made: list[Node] = []

    def call(self, target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Node:
        """Insert a call of a function, or of a tensor method given by name. Nodes of the original graph may be passed.

        Raises RewriteError when the graph was traced without fake tensors.
        """
        if self._kernel is not None and target is self._kernel.op:
            kwargs.update(self._kernel.options)
        args, kwargs = torch.fx.node.map_aggregate((args, kwargs), self._current)  # type: ignore[assignment]
        kind = "call_method" if isinstance(target, str) else "call_function"
        with self._graph.inserting_before(self._at):
            node = self._graph.create_node(kind, target, args, dict(kwargs))
        self.made.append(node)
        origin = self._site.outputs[0]
        node.meta.update({k: origin.meta[k] for k in ("nn_module_stack", "stack_trace") if k in origin.meta})
        node.meta["from_node"] = [NodeSource(origin, f"fluxrewrite.{self._site.kind}", [NodeSourceAction.REPLACE])]
        with self._regime():
            ours = self._kernel is not None and target is self._kernel.op
            value = self._calls.run(node) if ours else fake_run(node)
        node.meta["example_value" if "example_value" in origin.meta else "val"] = value
        return node

    def joined(self, weights: Sequence[Node]) -> Node:
        """A new input of the graph: parameters [N, ...] joined along their first axis, as `fluxrewrite.join` does."""
        parts = [self._current(n) for n in weights]
        last = self._graph.find_nodes(op="placeholder")[-1]
        with self._graph.inserting_after(last):
            node = self._graph.placeholder(f"joined_{parts[0].name}")
        self.made.append(node)
        node.meta.update(joined=tuple(n.name for n in parts), tensor_dict={"_dynamo_static_input_type": "unguarded"})
        node._dynamo_source = None  # type: ignore[attr-defined]  # AOTAutograd asks Dynamo's placeholders for it
        values = [value_of(n) for n in parts]
        with values[0].fake_mode, torch.no_grad():
            node.meta["example_value" if "example_value" in parts[0].meta else "val"] = torch.cat(values)
        return node

    def undo(self) -> None:
        """Take back everything that was inserted."""
        while self.made:
            self._graph.erase_node(self.made.pop())


def rewrite(gm: GraphModule, replacements: Iterable[Replacement]) -> tuple[GraphModule, list[tuple[Site, Reason]]]:
    """A rewritten copy of `gm`, and the sites that had to be left alone after all. `gm` itself is not changed."""
    graph, left = rewritten_graph(gm, replacements)
    return module_with(gm, graph), left


def rewritten_graph(gm: GraphModule, replacements: Iterable[Replacement]) -> tuple[Graph, list[tuple[Site, Reason]]]:
    """As `rewrite`, without the module: its code is written only where the graph is to run."""
    graph = copied(gm)
    twins = dict(zip(gm.graph.nodes, graph.nodes, strict=True))
    replaced: dict[Node, Node] = {}
    done: list[_Done] = []
    left: list[tuple[Site, Reason]] = []

    def current(value: Any) -> Any:
        value = twins.get(value, value)
        while value in replaced:
            value = replaced[value]
        return value

    strides, calls = Strides(gm.graph), FakeCalls()
    for item in replacements:
        builder = Builder(graph, twins[item.site.before], item.site, current, item.kernel, calls)
        try:
            made = _replace(item, builder, current, strides)
            replaced.update(made)
            inside = {twins[n] for n in (*item.site.interior, *item.site.outputs)}
            inside.update(twins[u] for n in item.site.interior for u in n.users if only_checks(u))
            done.append(_Done(item.site, builder, made, inside))
        except RewriteError as error:
            builder.undo()
            left.append((item.site, Reason(Code.REPLACEMENT, str(error), item.site.outputs[0].name)))
    kept = _read_ones(done)
    unread = [one.site for one in done if one not in kept]
    left += [(site, Reason(Code.REPLACEMENT, "nothing uses its results", site.outputs[0].name)) for site in unread]
    doomed = {n for one in kept for n in one.inside}
    for node in reversed(list(graph.nodes)):
        if node in doomed and not node.users:
            graph.erase_node(node)
    graph.lint()
    return graph, left


@dataclass(eq=False)
class _Done:
    """A site that was replaced: what was `made` in the place of what, and the nodes that have no use any more."""

    site: Site
    builder: Builder
    made: dict[Node, Node]
    inside: set[Node]

    @property
    def read(self) -> bool:
        """Whether anything but the site itself reads a result."""
        return any(user not in self.inside for new in self.made.values() for user in new.users)

    def undo(self) -> None:
        """Put back what was there."""
        for old, new in self.made.items():
            new.replace_all_uses_with(old)
        self.builder.undo()


def _read_ones(done: list[_Done]) -> list[_Done]:
    """Those of the replacements that something reads a result of; the others are taken back."""
    while dead := [one for one in done if not one.read]:
        for one in dead:
            one.undo()
        done = [one for one in done if one not in dead]
    return done


def _replace(item: Replacement, builder: Builder, current: Callable[[Any], Any], strides: Strides) -> dict[Node, Node]:
    outputs = [current(n) for n in item.site.outputs]
    try:
        if item.kernel is None:
            made = item.rewriter.emit_inline(item.site, builder)
        else:
            made = item.rewriter.emit(item.site, builder, item.kernel.op)
        for old, new in zip(outputs, made, strict=True):
            _check_same(old, new)
    except RewriteError:
        raise
    except Exception as error:
        raise RewriteError(f"{type(error).__name__}: {error}") from error
    for node, new in zip(item.site.outputs, made, strict=True):
        strides.check(node, new)
        new.meta["replaces"] = (*new.meta.get("replaces", ()), node.name)
    for old, new in zip(outputs, made, strict=True):
        old.replace_all_uses_with(new)
    return dict(zip(outputs, made, strict=True))


def _check_same(old: Node, new: Node) -> None:
    a, b = value_of(old), value_of(new)
    if not same_shape(a.shape, b.shape) or a.dtype != b.dtype or a.device != b.device:
        raise RewriteError(
            f"the call would give {b.dtype} {tuple(b.shape)} on {b.device} in place of {a.dtype} {tuple(a.shape)} on {a.device}"
        )


def copied(gm: GraphModule) -> Graph:
    """A copy of the graph of `gm`, nodes in the same order; placeholders keep what Dynamo attached to them."""
    graph = copy.deepcopy(gm.graph)
    for node, twin in zip(gm.graph.nodes, graph.nodes, strict=True):
        if node.op == "placeholder":
            twin.__dict__.update({k: v for k, v in node.__dict__.items() if k not in twin.__dict__})
    return graph


def as_module(gm: GraphModule, graph: Graph) -> GraphModule:
    """`gm` itself where `graph` is its own, else a module like it that runs `graph`."""
    return gm if graph is gm.graph else module_with(gm, graph)


def module_with(gm: GraphModule, graph: Graph) -> GraphModule:
    """A module like `gm` that runs `graph`; whatever Dynamo attached to `gm` is kept."""
    result = GraphModule(gm, graph, class_name=type(gm).__name__)
    for name, value in vars(gm).items():
        vars(result).setdefault(name, value)
    result.meta = dict(gm.meta)
    return result


def blocked(
    rewriter: Pass,
    view: GraphView,
    path: str,
    interior: Sequence[Node],
    outputs: Sequence[Node],
    operands: Iterable[Any],
    place: Node | None = None,
) -> Miss | None:
    """The checks that every site needs: no inner value escapes, nothing it reads is modified on the way, no gradient.

    Gradients are not a Miss: see `needs_grad`. The call stands in front of `place`, the first output when None.
    """
    inside = {*interior, *outputs}
    for node in interior:
        escaped = next((u for u in node.users if u not in inside and not only_checks(u)), None)
        if node not in outputs and escaped is not None and not _input_side(view, node, inside):
            return rewriter.miss(
                Code.INNER_USE, f"{node.name} is also used by {escaped.name}, outside the region", path, node
            )
    last = max(view.order(n) for n in inside)
    before = view.order(outputs[0] if place is None else place)
    for node, first in _read(view, [*operands, *interior, *_entering(view, inside)], inside).values():
        writer = view.written([node], min(first, before), max(last, before))
        if writer is not None:
            message = f"{writer.name} modifies memory that the region reads, between {min(first, before)} and {last}"
            return rewriter.miss(Code.MUTATION, message, path, writer)
    reason = shared_and_written(view, outputs)
    return None if reason is None else Miss(rewriter.kind, path, reason)


def _entering(view: GraphView, inside: set[Node]) -> list[Node]:
    """What a region reads from outside, but for memory that it writes itself."""
    own = {view.memory(w) for n in inside for w in view.fact(n).writes}
    found = dict.fromkeys(i for n in inside for i in n.all_input_nodes if i not in inside)
    return [n for n in found if view.memory(n) not in own]


def _read(view: GraphView, nodes: Iterable[Any], inside: set[Node]) -> dict[Any, tuple[Node, int]]:
    """For each memory of `nodes`: one of them, and the position of the first operation inside that makes or reads it.

    A view reads nothing: what is written before the first operation that does, a call sees too. A copy of what is written is no
    view (`GraphView.source`).
    """
    first: dict[Any, int] = {}
    for node in inside:
        if view.forwards(node):
            continue
        for memory in (view.memory(n) for n in (node, *node.all_input_nodes)):
            first[memory] = min(view.order(node), first.get(memory, view.order(node)))
    start = min(view.order(n) for n in inside)
    return {view.memory(n): (n, first.get(view.memory(n), start)) for n in nodes if isinstance(n, Node)}


def odd_dtype(view: GraphView, nodes: Iterable[Node], allowed: Iterable[torch.dtype | None]) -> Node | None:
    """A node of a region that computes in a float dtype other than float32 and those `allowed`, if there is one."""
    known = {torch.float32, torch.complex64, *allowed}
    for node in nodes:
        dtype = view.dtype(node)
        if dtype is not None and (dtype.is_floating_point or dtype.is_complex) and dtype not in known:
            return node
    return None


def dense_as(view: GraphView, node: Node, dims: Sequence[int]) -> bool:
    """Whether the traced `node` is not contiguous but would be with its axes in the order `dims`."""
    value = view.tensor(node)
    return value is not None and not value.is_contiguous() and bool(value.permute(*dims).is_contiguous())


def _input_side(view: GraphView, node: Node, inside: set[Node]) -> bool:
    """Whether `node` only views or casts what enters the region, so that others may use it too."""
    above = view.above(node)
    while above is not None:
        if above not in inside:
            return True
        above = view.above(above)
    return False


def needs_grad(view: GraphView, outputs: Iterable[Node]) -> Reason | None:
    """Why a site whose results need a gradient is left alone."""
    for node in outputs:
        value = view.tensor(node)
        if value is not None and value.requires_grad:
            message = "the result requires grad; kernels have no backward: trace under torch.no_grad() to rewrite"
            return Reason(Code.REQUIRES_GRAD, message, node.name)
    return None
