"""Smaller sizes at which a region does the same: fewer batches, positions, heads and columns.

The sizes are candidates only. A proof runs both sides at them and asks that each operation answers the shape that the traced
one becomes; where one does not, the region is not what it was, and larger sizes are tried.
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
"""Sizes below this are not cut: they would be confused with axes and indices, and cost little."""
MANY = 64
"""Positions enough: where dividing leaves more, lengths are chosen anew."""
HEAD = 16
"""Least size of a head: columns are at least so many times the heads."""
_COUNTED = ("sequence", "kv_sequence", "batch")
_WIDE = ("heads", "kv_heads", "query", "key", "value", "rest", "columns", "hidden")
_KEPT = ("head_size", "value_size")
"""Sizes by the names that sites have for them. The size of a head stays: attention scales by it."""
_SIZED = frozenset({"reshape", "expand", "split", "narrow", "slice", "getitem", "rms_norm", "layer_norm", "repeat"})
_MAKES = frozenset(
    {"ones", "zeros", "full", "empty", "arange", "eye", "new_ones", "new_zeros", "new_full", "new_empty", "repeat"}
    | {"tile", "repeat_interleave"}
)
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """What sizes become.

    Attributes:
        sizes: of the region's tensors, those that change.
        unit, divisor: multiples of `unit` that are no size of a tensor, as first rows, are divided by `divisor`.
        kept: sizes of the region's tensors that stay.
    """

    sizes: Mapping[int, int] = field(default_factory=dict)
    unit: int = 0
    divisor: int = 1
    kept: frozenset[int] = frozenset()

    def size(self, n: int) -> int:
        """What a size, or a number made of sizes, becomes."""
        if n in self.sizes:
            return self.sizes[n]
        parted = self.unit and n >= self.unit and n % self.unit == 0 and n not in self.kept
        return n // self.divisor if parted else n

    def shape(self, value: torch.Tensor) -> Sizes:
        """Of a traced tensor."""
        return tuple(self.size(hint(n, UNKNOWN)) for n in value.shape)

    def arguments(self, node: Node, op: Any) -> tuple[Any, Any]:
        """The arguments of a call with its sizes changed; numbers that are no sizes stay."""
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
    """Whether numbers of a call are sizes: of views, of what makes tensors, and of the kernel's `op`."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.target is op or read(node).op in _SIZED or str(name).partition(".")[0] in _MAKES


def cuts(site: Site, nodes: Sequence[Node], inputs: Sequence[Node]) -> Iterator[Cut]:
    """Cuts to try, the smallest sizes first; the last one changes nothing.

    Args:
        site: whose names for sizes say what may be cut.
        nodes: of the original and of the replacement.
        inputs: the values that enter.
    """
    relations = _Relations(nodes)
    dims = [n for node in (*nodes, *inputs) for t in _tensors(node) for n in t.shape]
    present = {hint(n, UNKNOWN) for n in dims}
    symbols = {str(n): hint(n, UNKNOWN) for n in dims if isinstance(n, torch.SymInt)}
    named = {name: symbols.get(n, 0) if isinstance(n, str) else n for name, n in site.shapes.items()}
    kept = {named[name] for name in _KEPT if name in named}
    for names in ((*_COUNTED, *_WIDE), _COUNTED, _WIDE):
        seeds = _seeds(named, names, kept)
        found = _assigned(relations, _classes(relations, seeds, kept), present)
        if found.sizes:
            yield found
    yield Cut()


def _seeds(named: Mapping[str, int], names: Iterable[str], kept: set[int]) -> dict[int, str]:
    """Sizes that may be cut, and which of them go together."""
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
    """What the operations say of sizes: which are parts of one whole, and which are products of others."""

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
        """Runs of axes of both shapes with equal products."""
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
    """New values for the sizes in `classes`, as `_classes` answers them; none that another size has."""
    groups: dict[str, list[int]] = {}
    for n, of in classes.items():
        if of.total() == 1:
            groups.setdefault(next(iter(of)), []).append(n)
    used = present - set(classes)
    sizes: dict[int, int] = {}
    unit = divisor = 0
    for name, members in sorted(groups.items()):
        found = _scaled(sorted(members), used)
        if name != "wide" and (found is None or max(found.values()) > MANY):
            found = _summed(sorted(members), used) or found
        if found is not None:
            sizes.update(found)
            used |= set(found.values())
            if name == "wide":
                large = [n for n in members if n >= HEAD * min(members)] or members
                unit, divisor = math.gcd(*large), min(members) // found[min(members)]
    for whole, factors in sorted(relations.products):
        if classes.get(whole, Counter()).total() > 1:
            sizes[whole] = math.prod(sizes.get(n, n) for n in factors)
    parted = divisor > 1 and unit % divisor == 0
    return Cut(sizes, unit if parted else 0, divisor if parted else 1, frozenset(present - set(sizes)))


def _classes(relations: _Relations, seeds: Mapping[int, str], kept: set[int]) -> dict[int, Counter[str]]:
    """For each size, which classes of seeds it is made of: a product of two has both. Those in `kept` stay."""
    known = {n: Counter([name]) for n, name in seeds.items()}
    for _ in range(8):
        before = len(known)
        for a, b in relations.alike:
            for x, y in ((a, b), (b, a)):
                if x in known and y >= LEAST and y not in kept:
                    known.setdefault(y, known[x])
        for whole, factors in relations.products:
            of = sum((known[f] for f in factors if f in known), Counter())
            if of:
                known.setdefault(whole, of)
            elif whole in known:
                first = next((f for f in factors if f >= LEAST and f not in kept), None)
                if first is not None:
                    known.setdefault(first, known[whole])
        if len(known) == before:
            return known
    return known


def _scaled(members: Sequence[int], used: set[int]) -> dict[int, int] | None:
    """All divided by one number, as large as the sizes stay apart from all others and above 2."""
    common = math.gcd(*members)
    for divisor in (d for d in range(common, 1, -1) if common % d == 0):
        found = {n: n // divisor for n in members}
        if min(found.values()) > 2 and not used & set(found.values()):
            return found
    return None


def _summed(members: Sequence[int], used: set[int]) -> dict[int, int] | None:
    """Sizes of no common divisor: small new ones for those that are not the sum of two others, and their sums."""
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
