"""Whether the result of a probe at small sizes also holds at the sizes of the graph.

A window of 512 positions has no effect at 4 positions, and neither has a roll by 8 at 8. So if sizes were cut or are not known,
every operation must be known to do the same at all sizes. Values that enter must have sizes that did not change, except for those
that the caller names. Whatever the sizes, no other tensor may enter: one that had no effect may have an effect with other values.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import SymInt, Tensor
from torch.fx import Node

from ...graph.fake_values import value_of
from ...graph.shapes import SYMBOLS, hint
from ...graph.view import GraphView
from .probe import Probe, ProbeRegion, depending
from .region import UNKNOWN
from .small_sizes import Cut, has_sizes

__all__ = ["unsure"]

_WORDS = """
    add sub rsub mul div neg abs sign square pow sqrt rsqrt reciprocal exp exp2 log sin cos tanh sigmoid silu gelu
    relu addcmul addcdiv lerp clamp maximum minimum logical_not where masked_fill fill zeros_like ones_like dropout
    copy cast real imag conj complex polar view_as_complex view_as_real resolve_conj resolve_neg sum mean amax amin
    max softmax log_softmax logsumexp matmul baddbmm einsum tensordot inner outer mv diag_embed block_diag reshape
    permute transpose movedim t expand getattr getitem slice narrow select chunk split unbind flip repeat
    repeat_interleave cat stack hstack vstack
"""
_ANY_SIZE = frozenset(_WORDS.split())
"""Operations whose numbers are not positions, or whose positions show in the shape of the result, which is compared with the
traced one."""
_ALONG = {"roll": ("dims", 2), "index_select": ("dim", 1), "gather": ("dim", 1), "cumsum": ("dim", 1)}
"""Operations that may shift positions by a number, with the name and position of the argument that gives the axis."""


def _is_whole(part: ProbeRegion, cut: Cut) -> bool:
    """Whether a region runs at the sizes of the graph, and all of them are known."""
    tensors = [v for n in part.members if isinstance(v := value_of(n), Tensor)]
    return not cut.sizes and not any(isinstance(n, SymInt) for t in tensors for n in t.shape)


def unsure(view: GraphView, probe: Probe, out: Node, arguments: Collection[Node], named: Collection[Node]) -> str:
    """Why the result of a probe may not hold at other sizes, or for other values that enter; "" if it holds.

    Args:
        view: the graph.
        probe: a probe of the region that computes `out`.
        out: the result.
        arguments: the values that it was evaluated as a function of.
        named: other values that it may depend on: tables, a mask.
    """
    part, cut = probe.part, probe.cut
    whole = _is_whole(part, cut)
    given = {*arguments, *named}
    after = depending(part.nodes, given)
    pending, seen = [out], set[Node]()
    while pending:
        node = pending.pop()
        if node in seen or node in given:
            continue
        seen.add(node)
        if node in part.inputs and view.tensor(node) is not None:
            return f"it may depend on {node.name} for other values than were tried"
        if node in after:
            if not whole and not _does_the_same(view, cut, node):
                return f"{node.name} ({view.op(node)}) may do something else at larger sizes than it was run at"
        elif view.op(node) != "expand" and _changed(cut, value_of(node)):  # an expanded value is judged by its source
            return f"{node.name} may have other values at larger sizes than it was run at"
        pending += [i for i in node.all_input_nodes if i in after or i in part.members]
    return ""


def _does_the_same(view: GraphView, cut: Cut, node: Node) -> bool:
    # A symbolic number in arithmetic makes values depend on the size. In the arguments of a view it is only a shape.
    if any(isinstance(value_of(i), SYMBOLS) for i in node.all_input_nodes) and not has_sizes(node):
        return False
    op = view.op(node)
    if op not in _ALONG:
        return op in _ANY_SIZE
    name, place = _ALONG[op]
    dims = node.kwargs.get(name, node.args[place] if len(node.args) > place else None)
    shape = value_of(node).shape
    along: Sequence[Any] = dims if isinstance(dims, (tuple, list)) else (dims,)
    return all(isinstance(d, int) and not _cut_size(cut, shape[d]) for d in along)


def _changed(cut: Cut, value: Any) -> bool:
    """Whether a tensor has other sizes in the graph. Symbolic numbers do not count, because they are only used as sizes."""
    return isinstance(value, Tensor) and any(_cut_size(cut, n) for n in value.shape)


def _cut_size(cut: Cut, size: Any) -> bool:
    return isinstance(size, SymInt) or cut.size(hint(size, UNKNOWN)) != size
