"""The region that a proof runs: the operations of a site, the values that enter them, and a digest without their names."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from ...graph.fake_values import name_of, value_of
from ...graph.shapes import SYMBOLS, hint, size_of
from ...graph.view import GraphView
from ...site import Site

__all__ = ["UNKNOWN", "Region", "region_of", "text_of"]

UNKNOWN = 40
"""Used for a size that only a run of the model determines, such as the length of `nonzero`. A proof needs one size per symbol."""
CLIMB = 24
"""Most nodes of a search for the connection of two values. A table and its broadcast form are one or two nodes apart."""
_NOT_EMITTED = frozenset({"path", "place", "notes", "reasons", "proof", "interior"})
"""Fields of a site that do not affect what is emitted for it."""


@dataclass(frozen=True)
class Region:
    """A site's operations as a function of the values that enter.

    Attributes:
        nodes: the nodes that compute the site's outputs or write to memory on the way, in graph order. They go back to values
            that are neither inside the site nor computed from another value that enters.
        inputs: the values that enter, and all other values that the site names, in order of first use.
        digest: equal for sites with the same operations on values of the same shapes, strides and dtypes, for which a pass
            emits the same. Names of nodes, weights and modules do not count, so equal blocks are proved once.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Node, ...]
    digest: str


def region_of(view: GraphView, site: Site) -> Region:
    """The region of a site."""
    inside = {*site.interior, *site.outputs}
    taken: set[Node] = set()
    # Not all of the interior: it may contain nodes that no output depends on. A write counts even where nothing reads its result.
    pending = [*site.outputs, *(n for n in inside if view.fact(n).writes)]
    while pending:
        node = pending.pop()
        if node in inside and node not in taken:
            taken.add(node)
            pending += node.all_input_nodes
    words = tokens(site)
    named = [n for n in dict.fromkeys(w for w in words if isinstance(w, Node)) if n not in inside]
    taken = _connected(view, taken, named)
    nodes = sorted(taken, key=view.order)
    entering = dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in taken)
    entering.update(dict.fromkeys(n for n in named if n not in taken))
    text = text_of(view, words, nodes, list(entering))
    return Region(tuple(nodes), tuple(entering), hashlib.sha256(text.encode()).hexdigest())


def _connected(view: GraphView, taken: set[Node], named: Collection[Node]) -> set[Node]:
    """`taken`, and the nodes between the values that enter it and those that the replacement may read.

    A table may enter the original through a view and the replacement directly, or each through a view of its own. Left as two
    inputs, they would get unrelated random values, and no correct replacement could be proved. Values that cannot be connected
    stay two inputs. Then a proof can only fail where it could have succeeded, never the reverse.
    """
    outer = _entering(taken)
    replaced = set(named)
    found = set(taken)
    for start in outer - replaced:
        found |= _between(view, start, replaced)
    for start in replaced - outer:
        found |= _between(view, start, outer)
    outer = _entering(found)
    chains = {n: _chain(view, n) for n in outer | replaced} if outer ^ replaced else {}
    # Two views of one value enter: their common source enters instead, and both views become part of the region.
    for node in outer ^ replaced:
        for other, chain in chains.items():
            shared = set(chain) & set(chains[node]) if other is not node else ()
            if shared:
                found.update(n for n in (*chain, *chains[node]) if n not in shared or view.tensor(n) is None)
    return found


def _entering(nodes: set[Node]) -> set[Node]:
    return {i for n in nodes for i in n.all_input_nodes if i not in nodes}


def _chain(view: GraphView, node: Node) -> list[Node]:
    """A value and the values that it is a view of, nearest first; at most `CLIMB` nodes."""
    chain = [node]
    while len(chain) < CLIMB and view.forwards(chain[-1]):
        source = view.fact(chain[-1]).args.get("input")
        if not isinstance(source, Node):
            break
        chain.append(source)
    return chain


def _between(view: GraphView, start: Node, ends: set[Node]) -> set[Node]:
    """The nodes on the paths from `ends` down to `start`, without the ends; empty if there is no path."""
    first = min((view.order(n) for n in ends), default=0)  # no node before all ends can depend on one of them
    seen: set[Node] = set()
    pending = [start]
    while pending and len(seen) < CLIMB:
        node = pending.pop()
        if node not in seen and (node not in ends or node is start) and view.order(node) > first:
            seen.add(node)
            pending += node.all_input_nodes
    way: set[Node] = set()
    for node in sorted(seen, key=view.order):
        if any(i in way or (i in ends and i is not start) for i in node.all_input_nodes):
            way.add(node)
    return way if start in way else set()


def text_of(view: GraphView, words: list[Any], nodes: list[Node], inputs: list[Node]) -> str:
    """The region as text, with a number for each node. A node outside both lists is written as the operation that it calls."""
    # Overlapping regions contain the same calls, so the tokens of a call are kept for the whole graph.
    number = {n: f"%{i}" for i, n in enumerate((*inputs, *nodes))}
    known: dict[Node, list[Any]] = view.memo("proof tokens", lambda _: {})
    found: list[str] = []
    for node in inputs:
        found += [" ".join(_kind(v) for v in tree_leaves(value_of(node))), "\n"]
    for node in nodes:
        if node not in known:
            known[node] = [node.op, *tokens((node.target, node.args, node.kwargs)), "\n"]
        found += [w if type(w) is str else number[w] for w in known[node]]
    found += [w if type(w) is str else number.get(w) or f"%? {w.op} {name_of(w.target)}" for w in words]
    return " ".join(found)


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        sizes = (
            tuple(size_of(n) if isinstance(n, int) else hint(n, UNKNOWN) for n in ns)
            for ns in (value.shape, value.stride())
        )
        return f"{value.dtype} {' '.join(map(str, sizes))} {value.device.type}"
    number = hint(value, UNKNOWN)
    return f"{type(number).__name__} {number}"


def tokens(value: Any) -> list[Any]:
    """A value of a call or site, flattened into texts and nodes in order."""
    # Nodes stay nodes, because the same call has another number in each region that contains it.
    found: list[Any] = []
    _tokens(value, found)
    return found


def _tokens(value: Any, found: list[Any]) -> None:
    kind: Any = type(value)
    if kind is Node:
        found.append(value)
    elif kind in _PLAIN:
        found.append(repr(value))
    elif isinstance(value, (tuple, list)):
        found.append("[")
        for item in value:
            _tokens(item, found)
        found.append("]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            found.append(f"{key}:")
            _tokens(item, found)
        found.append(";")
    elif dataclasses.is_dataclass(value) and kind is not type:
        found.append(f"{kind.__qualname__}(")
        for name in _fields(kind):  # type: ignore[arg-type]
            _tokens(getattr(value, name), found)
        found.append(")")
    else:
        found.append(_other(value))


_PLAIN = frozenset({type(None), str, int, float, bool, complex, torch.dtype, torch.device})


@functools.cache
def _fields(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind) if f.name not in _NOT_EMITTED)


def _other(value: Any) -> str:
    if isinstance(value, SYMBOLS):
        return repr(hint(value, UNKNOWN))
    if isinstance(value, slice):
        return f"slice{tuple(map(_other, (value.start, value.stop, value.step)))}"
    return name_of(value) if callable(value) else repr(value)
