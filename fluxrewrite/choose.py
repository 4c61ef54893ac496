"""Which eligible sites to give to kernels: for each distinct block of the model the set with the least predicted time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.fx import Node

from .graph import GraphView, module_path
from .site import Site

__all__ = ["Block", "Choice", "Price", "block_path", "blocks", "choose"]

MARGIN = 0.02
"""A set of kernels must be predicted to save at least this share of a block's time: models of time are not exact to less."""

Kinds = frozenset[tuple[object, ...]]


@dataclass(frozen=True)
class Block:
    """A part of the graph that repeats: its sites, and its nodes in order.

    Attributes:
        path: the module, as "transformer_blocks.3"; "" for what lies in no numbered module.
        sites: sites that kernels may take, in graph order.
        nodes: everything from the first to the last node of the module.
    """

    path: str
    sites: tuple[Site, ...]
    nodes: tuple[Node, ...]

    @property
    def signature(self) -> tuple[object, ...]:
        """Equal for blocks that are decided alike."""
        return (len(self.nodes), *(_kind(site) for site in self.sites))


Price = Callable[[Block, Sequence[Site]], float]
"""Time of a block, in microseconds or any other unit, when kernels take these of its sites."""


@dataclass(frozen=True)
class Choice:
    """What was decided for the sites of one kind of block.

    Attributes:
        block: path of the first such block.
        blocks: how many there are.
        taken: the kinds of site that kernels take.
        times: time of the block by the names of the kernels in it.
        chosen: the names of those taken.
        alone: what each kind of kernel alone adds to the block's time.
    """

    block: str
    blocks: int
    taken: Kinds
    times: Mapping[str, float]
    chosen: str
    alone: Mapping[str, float]


def blocks(view: GraphView, sites: Sequence[Site]) -> list[Block]:
    """The blocks that hold `sites`, by the first numbered module on their path."""
    by_path: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        by_path[block_path(site.path)].append(site)
    span: dict[str, tuple[int, int]] = {}
    for index, node in enumerate(view.nodes):
        path = block_path(module_path(node))
        if path in by_path and node.op in ("call_function", "call_method"):
            span[path] = (span.get(path, (index, 0))[0], index)
    found = []
    for path, members in by_path.items():
        inside = [view.order(n) for s in members for n in (*s.interior, *s.outputs, s.before)]
        first, last = span.get(path, (min(inside), max(inside)))
        nodes = view.nodes[min(first, *inside) : max(last, *inside) + 1]
        computed = tuple(n for n in nodes if n.op in ("call_function", "call_method"))
        found.append(Block(path, tuple(members), computed))
    return found


def block_path(path: str) -> str:
    """Up to the first number: "transformer_blocks.3" of "transformer_blocks.3.attn"."""
    parts = path.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if at is None else ".".join(parts[: at + 1])


def _kind(site: Site) -> tuple[object, ...]:
    return (site.kind, site.form, tuple(site.shapes.items()), site.dtype)


def choose(view: GraphView, sites: Sequence[Site], price: Price) -> tuple[list[Site], list[Choice]]:
    """The sites to rewrite, and one `Choice` for each distinct block.

    Args:
        view: the graph.
        sites: sites that kernels may take; they may overlap.
        price: time of a block with some of its sites taken by kernels.

    Returns:
        Sites, none of which overlaps another; and what was decided for each kind of block. A set is taken only if it is at
        least `MARGIN` faster than none.
    """
    decided: dict[tuple[object, ...], Choice] = {}
    chosen: list[Site] = []
    for block in blocks(view, sites):
        known = decided.get(block.signature)
        choice = _decide(block, price) if known is None else known
        decided[block.signature] = _counted(choice, known)
        chosen += _largest([s for s in block.sites if _kind(s) in choice.taken])
    return chosen, list(decided.values())


def _counted(choice: Choice, known: Choice | None) -> Choice:
    if known is None:
        return choice
    return replace(known, blocks=known.blocks + 1)


def _decide(block: Block, price: Price) -> Choice:
    """No kernel, each kind alone, all of them, and from each of these whatever one more kind makes better."""
    kinds = list(dict.fromkeys(_kind(s) for s in block.sites))
    times: dict[Kinds, float] = {}

    def tried(wanted: Iterable[tuple[object, ...]]) -> Kinds:
        taken = _largest([s for s in block.sites if _kind(s) in wanted])
        found = frozenset(map(_kind, taken))
        if found not in times:
            times[found] = price(block, taken)
        return found

    none = times[tried(())]
    alone: dict[str, float] = defaultdict(float)
    for kind in kinds:
        alone[str(kind[0])] += times[tried([kind])] - none
    tried(kinds)
    for start in list(times):
        _grown(start, kinds, times, tried)
    best = _least(times)
    if times[best] > none * (1 - MARGIN):
        best = frozenset()
    labels = {found: _label(block, found) for found in times}
    return Choice(block.path, 1, best, {labels[k]: us for k, us in times.items()}, labels[best], alone)


def _grown(
    start: Kinds,
    kinds: Sequence[tuple[object, ...]],
    times: Mapping[Kinds, float],
    tried: Callable[[Kinds], Kinds],
) -> None:
    """Add the kind that helps most until none does."""
    while True:
        wider = {found: times[found] for kind in kinds if (found := tried(start | {kind})) != start}
        if not wider or wider[_least(wider)] >= times[start]:
            return
        start = _least(wider)


def _least(times: Mapping[Kinds, float]) -> Kinds:
    """The set with the least time; of equal ones the smallest."""
    return min(times, key=lambda found: (times[found], len(found)))


def _largest(sites: Sequence[Site]) -> list[Site]:
    """Without sites that lie inside a larger one."""
    owner: dict[Node, Site] = {}
    for site in sorted(sites, key=lambda s: len(s.interior)):
        owner.update(dict.fromkeys((*site.interior, *site.outputs), site))
    return [s for s in sites if all(owner[n] is s for n in s.outputs)]


def _label(block: Block, taken: Kinds) -> str:
    """ "qkv:triple[256] + attention:sdpa x2"; "none" for no kind. Sizes tell kinds of one form apart."""
    kinds = list(dict.fromkeys(_kind(s) for s in block.sites))
    words = []
    for kind in kinds:
        if kind not in taken:
            continue
        like = [s for s in block.sites if _kind(s) == kind]
        others = [k for k in kinds if k[:2] == kind[:2]]
        sizes = f"[{_telling(like[0], others)}]" if len(others) > 1 else ""
        words.append(f"{kind[0]}:{kind[1]}{sizes}" + (f" x{len(like)}" if len(like) > 1 else ""))
    return " + ".join(words) or "none"


def _telling(site: Site, others: Sequence[tuple[object, ...]]) -> str:
    """The sequence length where that tells the kinds apart, else the number of the kind."""
    lengths = [dict(k[2]).get("sequence") for k in others]  # type: ignore[call-overload]
    return str(site.shapes.get("sequence") if len(set(lengths)) == len(others) else others.index(_kind(site)) + 1)
