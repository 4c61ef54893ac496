"""Patterns as data: combinators that read like the algebra that they look for, and the matcher that tries them.

    x, cos, sin = Value("x"), Value("cos"), Value("sin")
    turned = Join("style", Op("neg", Lanes(x, 1)), Lanes(x, 0))
    rope = Op("add", Op("mul", turned, sin), Op("mul", x, cos))

A pattern starts at its last operation and walks up. Casts and views that change nothing are looked through and recorded. `add`
and `mul` try both orders. A name used twice must match the same value, but two names may match one value. Every failed attempt
keeps its deepest mismatch, so a near miss can report what was expected and what was found.

PyTorch's matchers (`SubgraphMatcher`, Inductor's `PatternMatcherPass`) are not used. A pattern of theirs knows one spelling of its
operations and views, and one that does not match gives no reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from .graph.index_map import pure_reshape, viewed
from .graph.op_table import COMMUTATIVE, OPERANDS
from .graph.shapes import same_dim, same_shape
from .graph.view import GraphView

__all__ = ["Attempt", "Const", "Either", "Join", "Lanes", "Maybe", "Op", "Pattern", "Value", "match"]


@dataclass
class Attempt:
    """One attempt to match a pattern at a node.

    Attributes:
        view: the graph.
        captures: values and numbers captured, by name.
        tags: which alternative matched, by name.
        nodes: the nodes of the match so far, with the views and casts looked through.
        matched: whether the pattern matched.
        depth: how many nodes were matched at the deepest mismatch; -1 if there was none.
        failure: what was expected and found there.
        failed_at: the node there.
        visited: all nodes that any alternative took, also those given up.
    """

    view: GraphView
    captures: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    matched: bool = False
    depth: int = -1
    failure: str = ""
    failed_at: Node | None = None
    visited: set[Node] = field(default_factory=set)

    def fail(self, value: Any, message: str) -> bool:
        """Record a mismatch at `value` if it is the deepest so far. Returns False, so that patterns can return the call."""
        # The alternative that matched most nodes is the one that the model most likely comes close to.
        if len(self.nodes) > self.depth:
            self.depth, self.failure = len(self.nodes), message
            self.failed_at = value if isinstance(value, Node) else (self.nodes[-1] if self.nodes else None)
        return False

    def take(self, *nodes: Node) -> None:
        """Add `nodes` to the match. For a piece of a split, chunk or unbind, the operation that made the pieces is added too."""
        for node in nodes:
            self.nodes.append(node)
            pieces = self.view.fact(node).args.get("input")
            if isinstance(pieces, Node) and self.view.tensor(pieces) is None:
                self.nodes.append(pieces)
        self.visited.update(nodes)

    def take_between(self, value: Any, end: Any) -> None:
        """Add the views and casts from `value` up to `end` to the match, without `end`."""
        while value is not end:
            self.take(value)
            found = self.view.source(value)
            value = end if found is None else found[0]

    def mark(self) -> tuple[dict[str, Any], dict[str, str], int]:
        """The state of the match, for `back`."""
        return dict(self.captures), dict(self.tags), len(self.nodes)

    def back(self, mark: tuple[dict[str, Any], dict[str, str], int]) -> None:
        """Forget all that was captured since `mark`. The deepest mismatch stays."""
        self.captures, self.tags = dict(mark[0]), dict(mark[1])
        del self.nodes[mark[2] :]

    def look_through(self, value: Any) -> Any:
        """`value` without its casts, rounding ones included, and without views that change nothing. All of them are recorded."""
        # Mixed-precision models cast between any two operations of a pattern. Passes compare the dtypes afterwards.
        bare = self.view.strip(value, lossy=True)
        self.take_between(value, bare)
        return bare


class Pattern:
    """Base of the combinators."""

    def match(self, attempt: Attempt, value: Any) -> bool:
        """Try to match `value`, recording captures in `attempt`."""
        raise TypeError(f"{type(self).__name__} does not match anything")


def match(pattern: Pattern, view: GraphView, node: Node) -> Attempt:
    """Try `pattern` with its root at `node`. The cost depends on the size of the pattern, not of the graph."""
    # On the way up, each part of a pattern meets one candidate, or two where operands commute. Nothing else is searched.
    attempt = Attempt(view)
    attempt.matched = pattern.match(attempt, node)
    return attempt


@dataclass(frozen=True)
class Value(Pattern):
    """Any tensor, captured as `name`. Where the name occurs again, it must be the same value.

    Views that change nothing are removed from the captured value, and so are lossless casts unless `exact`.
    """

    name: str
    exact: bool = False

    def match(self, attempt: Attempt, value: Any) -> bool:
        """Capture the value."""
        if attempt.view.tensor(value) is None:
            return attempt.fail(value, f"expected a tensor for {self.name}, found {value!r}")
        bare = attempt.view.bare(value) if self.exact else attempt.view.strip(value)
        known = attempt.captures.setdefault(self.name, bare)
        attempt.take_between(value, bare)
        # Not only the same node: Dynamo traces `x.float()` once for each time that the model's source calls it.
        same = known is bare or attempt.view.alike(known, bare)
        return same or attempt.fail(value, f"expected {self.name} to be {known}, found {bare}")


@dataclass(frozen=True)
class Const(Pattern):
    """A number written in the graph, captured as `name`. Where the name occurs again, it must be the same number."""

    name: str

    def match(self, attempt: Attempt, value: Any) -> bool:
        """Capture an int or float."""
        number = attempt.view.number(value)
        if number is None or isinstance(number, bool):
            return attempt.fail(value, f"expected a number for {self.name}, found {attempt.view.op(value)}")
        return attempt.captures.setdefault(self.name, number) == number or attempt.fail(
            value, f"{self.name} is {value} here"
        )


class Op(Pattern):
    """An operation by its canonical name, with patterns for its arguments, by position or by name.

    An argument without a pattern must have its default value (`alpha=1`) or be listed in `ignore`.
    """

    def __init__(self, op: str, *operands: Pattern | object, ignore: tuple[str, ...] = (), **named: Any) -> None:
        self.op, self.operands, self.named, self.ignore = op, operands, named, ignore

    def match(self, attempt: Attempt, value: Any) -> bool:
        """Match the operation under its casts and views, then its operands in every order that the operation allows."""
        node = attempt.look_through(value)
        if attempt.view.op(node) != self.op:
            return attempt.fail(node, f"expected {self.op}, found {attempt.view.op(node)}")
        arguments = self._arguments(attempt, node)
        if arguments is None:
            return False
        attempt.take(node)
        orders = [arguments]
        if self.op in COMMUTATIVE and len(self.operands) == 2:
            orders.append(list(reversed(arguments)))
        return self._any_order(attempt, orders)

    def _any_order(self, attempt: Attempt, orders: list[list[Any]]) -> bool:
        mark = attempt.mark()
        for arguments in orders:
            if all(_match(p, attempt, a) for p, a in zip(self.operands, arguments, strict=True)):
                return True
            attempt.back(mark)  # names captured in this order would make the next one fail
        return False

    def _arguments(self, attempt: Attempt, node: Node) -> list[Any] | None:
        fact = attempt.view.fact(node)
        names = OPERANDS.get(self.op, ("input",))[: len(self.operands)]
        if any(n not in fact.args for n in names):
            attempt.fail(node, f"{self.op} with arguments {', '.join(fact.args)}, expected {', '.join(names)}")
            return None
        for name, expected in self.named.items():
            if not _match(expected, attempt, fact.args.get(name, fact.defaults.get(name))):
                return None
        # An argument that the author of the pattern did not think of can change the result.
        for name, given in fact.args.items():
            default = fact.defaults.get(name)
            if name not in names and name not in self.named and name not in self.ignore and given != default:
                attempt.fail(node, f"{self.op} with {name}={given!r}, expected {default!r}")
                return None
        return [fact.args[n] for n in names]


def _match(pattern: Any, attempt: Attempt, value: Any) -> bool:
    if isinstance(pattern, Pattern):
        return pattern.match(attempt, value)
    return bool(pattern == value) or attempt.fail(value, f"expected {pattern!r}, found {value!r}")


class Either(Pattern):
    """One of several patterns. The name of the first one that matches is kept as the tag `name`."""

    def __init__(self, name: str, /, **options: Pattern) -> None:
        self.name, self.options = name, options

    def match(self, attempt: Attempt, value: Any) -> bool:
        """Try the options in order. If the tag is set already, only the option of that name is tried."""
        mark = attempt.mark()
        for tag, pattern in self.options.items():
            if attempt.tags.get(self.name, tag) == tag and pattern.match(attempt, value):
                attempt.tags[self.name] = tag
                return True
            attempt.back(mark)
        return False


def Maybe(name: str, wrap: Callable[[Pattern], Pattern], inner: Pattern) -> Either:
    """`wrap(inner)` or plain `inner`. The tag `name` is "present" or "absent"."""
    return Either(name, present=wrap(inner), absent=inner)


@dataclass(frozen=True)
class Lanes(Pattern):
    """Half of the last axis of `of`: the first (0) or second (1) members of its pairs.

    The tag `style` is how the axis is split: `interleaved` (x[..., 0::2] and x[..., 1::2]) or `half` (first and second half). The
    split may be written as slices, chunk, split, reshape and unbind, or select.
    """

    of: Pattern
    index: int
    style: str = "style"

    def match(self, attempt: Attempt, value: Any) -> bool:
        """Walk up the views to a source of which exactly one half is shown, then match that source."""
        view = attempt.view
        bare = attempt.look_through(value)
        shape = view.shape(bare)
        passed: list[Node] = [bare]
        for source, chain_steps in view.chain(bare):
            style = self._style(view, source, chain_steps, shape)
            if style is not None and attempt.tags.setdefault(self.style, style) == style:
                attempt.take(*passed)
                return self.of.match(attempt, source)
            passed.append(source)
        return attempt.fail(
            value, f"expected {('first', 'second')[self.index]} members of pairs, found {view.op(bare)}"
        )

    def _style(self, view: GraphView, source: Node, chain_steps: tuple[Any, ...], shape: Any) -> str | None:
        whole = view.shape(source)
        if (
            not whole
            or not isinstance(whole[-1], int)
            or whole[-1] % 2
            or not same_shape(shape, (*whole[:-1], whole[-1] // 2))
        ):
            return None
        seen = viewed(whole, chain_steps)
        lanes = None if seen is None else seen.lanes()
        # Halves in permuted rows have the right shape too, but their elements would be paired with those of other rows.
        if lanes is None or lanes.axes != tuple(range(len(whole))):
            return None
        found = (lanes.offset, lanes.strides[-1])
        return {(self.index, 2): "interleaved", (self.index * whole[-1] // 2, 1): "half"}.get(found)


@dataclass(frozen=True)
class Join(Pattern):
    """Two tensors joined as the first and second members of the pairs of a last axis twice as long; see `Lanes` for the tag."""

    style: str
    first: Pattern
    second: Pattern

    def match(self, attempt: Attempt, value: Any) -> bool:
        """Match a cat on the last axis, or a stack on a new axis that is then flattened into the last one."""
        node = attempt.look_through(value)
        found = joined(attempt.view, node)
        if found is None:
            return attempt.fail(node, f"expected two joined halves, found {attempt.view.op(node)}")
        style, maker, (first, second) = found
        if attempt.tags.setdefault(self.style, style) != style:
            return attempt.fail(node, f"expected {attempt.tags[self.style]} pairs, found {style}")
        attempt.take_between(node, maker)
        attempt.take(maker)
        for piece, given in zip((first, second), attempt.view.arg(maker, "tensors"), strict=True):
            attempt.take_between(given, piece)
        return self.first.match(attempt, first) and self.second.match(attempt, second)


def joined(view: GraphView, node: Any) -> tuple[str, Node, tuple[Any, Any]] | None:
    """(style, the cat or stack, the two tensors that it joins) if `node` joins two tensors of one shape as in `Join`, else None."""
    out = view.shape(node) or ()
    if view.op(node) == "cat" and _pair_on(view, node, -1):
        first, second = view.arg(node, "tensors")
        # A cat to size 2 makes the pairs of an interleaved axis, which a reshape below flattens. It does not join two halves.
        if not same_dim(out[-1], 2):
            return "half", node, (first, second)
    for source, taken in view.chain(node):
        # Only the end of the chain can be what joins; all others are views.
        if view.source(source) is not None:
            continue
        shape = view.shape(source) or (1,)
        fits = same_shape(out[:-1], shape[:-2])
        for axis, style in ((-1, "interleaved"), (-2, "half")):
            if fits and _pair_on(view, source, axis) and pure_reshape(shape, taken, out):
                pieces = _stacked(view, source, axis)
                return None if pieces is None else (style, source, pieces)
        return None
    return None


def _stacked(view: GraphView, node: Node, axis: int) -> tuple[Any, Any] | None:
    """The tensors that a stack joins; for a cat of tensors that each got a new axis first, the tensors without that axis."""
    first, second = view.arg(node, "tensors")
    if view.op(node) == "stack":
        return first, second
    found = []
    for piece in (first, second):
        shape = list(view.shape(piece) or ())
        del shape[axis]
        above = (
            s
            for s, steps in view.chain(piece)
            if same_shape(view.shape(s) or (), shape) and pure_reshape(shape, steps, view.shape(piece) or ())
        )
        found.append(next(above, None))
    return None if None in found else (found[0], found[1])


def _pair_on(view: GraphView, node: Node, axis: int) -> bool:
    tensors, dim, shape = view.arg(node, "tensors"), view.arg(node, "dim"), view.shape(node)
    if not isinstance(tensors, (list, tuple)) or len(tensors) != 2 or shape is None:
        return False
    a, b = (view.shape(t) for t in tensors)
    return a is not None and b is not None and same_shape(a, b) and int(dim) % len(shape) == axis % len(shape)
