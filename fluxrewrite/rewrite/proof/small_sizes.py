"""Smaller sizes at which a region does the same: fewer batches, positions, heads and columns.

At its own sizes, a site of a large model takes far more work than a proof may (`prover.WORK`). The sizes found here are only
candidates. A proof runs both sides at them and checks that each operation returns the shape that its traced shape becomes. If one
does not, the region is no longer the same, and larger sizes are tried.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from ...graph.fake_values import value_of
from ...graph.op_table import RESHAPES, read
from ...graph.shapes import hint
from ...site import Site
from .region import UNKNOWN

__all__ = ["Cut", "cuts", "has_sizes"]

LEAST = 9
"""Smaller sizes are not cut. They cannot be distinguished from numbers of axes and indices, and they cost little."""
MANY = 64
"""Most positions that a proof needs. If dividing leaves more, new lengths are chosen."""
HEAD = 16
"""Smallest head size: numbers of columns are at least this many times the number of heads."""
_COUNTED = ("sequence", "kv_sequence", "batch")
_WIDE = ("heads", "kv_heads", "query", "key", "value", "rest", "columns", "hidden")
_KEPT = ("head_size", "value_size")
"""Sizes by the names that sites use for them. The head size stays, because attention scales by it."""
_SIZED = frozenset({"reshape", "expand", "split", "narrow", "slice", "getitem", "rms_norm", "layer_norm", "repeat"})
_MAKES = frozenset(
    {"ones", "zeros", "full", "empty", "arange", "eye", "new_ones", "new_zeros", "new_full", "new_empty", "repeat"}
    | {"tile", "repeat_interleave"}
)
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """A change of sizes.

    Attributes:
        sizes: the new size for each size of the region's tensors that changes.
        unit, divisor: a multiple of `unit` that is not the size of a tensor, such as the first row of a part, is divided by
            `divisor`.
        kept: sizes of the region's tensors that stay.
    """

    sizes: Mapping[int, int] = field(default_factory=dict)
    unit: int = 0
    divisor: int = 1
    kept: frozenset[int] = frozenset()

    def size(self, n: int) -> int:
        """The new value of a size, or of a number derived from sizes."""
        if n in self.sizes:
            return self.sizes[n]
        multiple = self.unit and n >= self.unit and n % self.unit == 0 and n not in self.kept
        return n // self.divisor if multiple else n

    def shape(self, value: torch.Tensor) -> Sizes:
        """The new shape of a traced tensor."""
        return tuple(self.size(hint(n, UNKNOWN)) for n in value.shape)

    def arguments(self, node: Node, op: Any) -> tuple[Any, Any]:
        """The arguments of a call with its sizes changed. Numbers that are not sizes stay."""
        if not self.sizes or not has_sizes(node, op):
            return node.args, node.kwargs
        index = read(node).op == "getitem"
        return self._changed(node.args, index), {k: self._changed(v, index) for k, v in node.kwargs.items()}

    def _changed(self, value: Any, index: bool) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self._changed(v, index) for v in value)
        if isinstance(value, slice):
            return slice(*(self._changed(v, False) for v in (value.start, value.stop, value.step)))
        plain = isinstance(value, int) and not isinstance(value, bool) and value >= LEAST and not index
        return self.size(value) if plain else value


def has_sizes(node: Node, op: Any = None) -> bool:
    """Whether numbers in the arguments of a call are sizes: a view, an operation that makes a tensor, or the kernel's `op`."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.target is op or read(node).op in _SIZED or str(name).partition(".")[0] in _MAKES


def cuts(site: Site, nodes: Sequence[Node], inputs: Sequence[Node]) -> Iterator[Cut]:
    """Cuts to try, the smallest sizes first. The last one changes nothing.

    Args:
        site: its names for sizes say which may be cut.
        nodes: nodes of the original and of the replacement.
        inputs: the values that enter.
    """
    relations = _Relations(nodes)
    dims = [n for node in (*nodes, *inputs) for t in _tensors(node) for n in t.shape]
    present = {hint(n, UNKNOWN) for n in dims}
    symbols = {str(n): hint(n, UNKNOWN) for n in dims if isinstance(n, torch.SymInt)}
    named = {name: symbols.get(n, 0) if isinstance(n, str) else n for name, n in site.shapes.items()}
    kept = {named[name] for name in _KEPT if name in named}
    # If one kind of size cannot be cut, such as positions where a region reads the thirtieth of them, the other may be.
    for names in ((*_COUNTED, *_WIDE), _COUNTED, _WIDE):
        seeds = _seeds(named, names, kept)
        found = _assigned(relations, _classes(relations, seeds, kept), present)
        if found.sizes:
            yield found
    yield Cut()


def _seeds(named: Mapping[str, int], names: Iterable[str], kept: set[int]) -> dict[int, str]:
    """The class of each size that may be cut. Sizes of one class change together.

    All widths are one class: the ratios of heads to columns, and of columns to each other, must stay.
    """
    found: dict[int, str] = {}
    for name in names:
        n = named.get(name, 0)
        if n >= LEAST and n not in kept:
            found.setdefault(n, "wide" if name in _WIDE else name)
    return found


def _tensors(node: Node) -> list[torch.Tensor]:
    value = value_of(node)
    values = value if isinstance(value, (tuple, list)) else [value]
    return [v for v in values if isinstance(v, torch.Tensor)]


class _Relations:
    """How the operations relate sizes: which are parts of one whole, and which are products of others.

    A site names only some sizes. The others, such as the columns of a packed layer, must change consistently with these.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.alike: set[tuple[int, int]] = set()
        self.products: set[tuple[int, Sizes]] = set()
        for node in nodes:
            op, before, after = read(node).op, [t for n in node.all_input_nodes for t in _tensors(n)], _tensors(node)
            if not before or not after:
                continue
            if op in ("cat", "split", "chunk", "narrow", "slice", "getitem"):
                for a in before:
                    for b in after:
                        self._parts(_sizes(a), _sizes(b))
            elif op in RESHAPES:
                self._groups(_sizes(before[0]), _sizes(after[0]))

    def _parts(self, a: Sizes, b: Sizes) -> None:
        if len(a) == len(b):
            self.alike.update((x, y) for x, y in zip(a, b, strict=True) if x != y)

    def _groups(self, a: Sizes, b: Sizes) -> None:
        """Record groups of adjacent axes in both shapes that have equal products."""
        i = j = 0
        while i < len(a) and j < len(b):
            left, right = [a[i]], [b[j]]
            i, j = i + 1, j + 1
            while math.prod(left) != math.prod(right):
                if math.prod(left) < math.prod(right) and i < len(a):
                    left.append(a[i])
                    i += 1
                elif j < len(b):
                    right.append(b[j])
                    j += 1
                else:
                    return
            for whole, factors in ((left, right), (right, left)):
                real = tuple(n for n in factors if n > 1)
                if len([n for n in whole if n > 1]) == 1 and len(real) > 1:
                    self.products.add((math.prod(whole), real))


def _sizes(tensor: torch.Tensor) -> Sizes:
    return tuple(hint(n, UNKNOWN) for n in tensor.shape)


def _assigned(relations: _Relations, classes: Mapping[int, Counter[str]], present: set[int]) -> Cut:
    """The cut that gives new values to the sizes in `classes`, the result of `_classes`."""
    groups: dict[str, list[int]] = {}
    for n, factors in classes.items():
        if factors.total() == 1:
            groups.setdefault(next(iter(factors)), []).append(n)
    # A cut maps numbers and not axes. If two sizes became equal, or one became a size that stays, an operation on the wrong axis
    # would return the right shape.
    used = present - set(classes)
    sizes: dict[int, int] = {}
    unit = divisor = 0
    for name, members in sorted(groups.items()):  # sorted, so that the order of operations does not matter
        found = _scaled(sorted(members), used)
        if name != "wide" and (found is None or max(found.values()) > MANY):
            found = _summed(sorted(members), used) or found
        if found is not None:
            sizes.update(found)
            used |= set(found.values())
            if name == "wide":
                # From columns and not from the number of heads, of which too many other numbers are multiples.
                large = [n for n in members if n >= HEAD * min(members)] or members
                unit, divisor = math.gcd(*large), min(members) // found[min(members)]
    for whole, parts in sorted(relations.products):
        if classes.get(whole, Counter()).total() > 1:
            sizes[whole] = math.prod(sizes.get(n, n) for n in parts)
    kept = frozenset(present - set(sizes))
    return Cut(sizes, unit, divisor, kept) if divisor > 1 and unit % divisor == 0 else Cut(sizes, kept=kept)


def _classes(relations: _Relations, seeds: Mapping[int, str], kept: set[int]) -> dict[int, Counter[str]]:
    """The classes of the seeds that each size is made of. A product of two sizes has the classes of both.

    Sizes in `kept` have none.
    """
    known = {n: Counter([name]) for n, name in seeds.items()}
    for _ in range(8):  # classes spread along chains of operations, at least one link in each round
        before = len(known)
        for a, b in relations.alike:
            for x, y in ((a, b), (b, a)):
                if x in known and y >= LEAST and y not in kept:
                    known.setdefault(y, known[x])
        for whole, factors in relations.products:
            made_of = sum((known[f] for f in factors if f in known), Counter())
            if made_of:
                known.setdefault(whole, made_of)
            elif whole in known:
                # Something must carry the change of the product. A head size stays, so it is the first other large factor.
                first = next((f for f in factors if f >= LEAST and f not in kept), None)
                if first is not None:
                    known.setdefault(first, known[whole])
        if len(known) == before:
            return known
    return known


def _scaled(members: Sequence[int], used: set[int]) -> dict[int, int] | None:
    """All sizes divided by one number: the largest for which they stay above 2 and differ from all other sizes.

    Sizes of 1 and 2 broadcast or are pairs, so an operation on them may do something else.
    """
    common = math.gcd(*members)
    for divisor in (d for d in range(common, 1, -1) if common % d == 0):
        found = {n: n // divisor for n in members}
        if min(found.values()) > 2 and not used & set(found.values()):
            return found
    return None


def _summed(members: Sequence[int], used: set[int]) -> dict[int, int] | None:
    """Small new sizes that keep sums: a size that is the sum of two others stays their sum. None if they do not fit.

    For lengths without a useful common divisor, such as 4096 and 333 positions that are joined to 4429.
    """
    found: dict[int, int] = {}
    for n in members:
        parts = next(((a, n - a) for a in found if n - a in found), None)
        if parts is not None:
            new = found[parts[0]] + found[parts[1]]
        else:
            new = next(k for k in range(3, n + 1) if k not in used and k not in found.values())
        if new >= n or new in used or new in found.values():
            return None
        found[n] = new
    return found
