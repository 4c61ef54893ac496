"""Which eligible sites to give to kernels: for each distinct block of the model the set with the least time."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch.fx import Node

from .graph import GraphView, module_path
from .site import Site

__all__ = ["MARGIN", "Basis", "Block", "Choice", "Price", "Priced", "blocks", "choose", "kernels_of"]

MARGIN = 0.02
"""A set of kernels must save at least this share of a block's time: neither models nor measurements are exact to less."""

Kinds = frozenset[tuple[object, ...]]
Basis = Literal["modelled", "measured"]


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


class Price(Protocol):
    """Tells times of a block with kernels in the place of some of its sites.

    Attributes:
        basis: where the times come from.
    """

    basis: Basis

    def __call__(self, block: Block, candidates: Sequence[Sequence[Site]]) -> Sequence[Priced]:
        """One time for each candidate: the sites that kernels take; no site for the block as it is."""


@dataclass(frozen=True)
class Priced:
    """Microseconds of a block, infinite if it cannot run so, and the least difference from the block as it is that counts."""

    us: float
    noise_us: float = 0.0


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
        basis: where the times come from.
    """

    block: str
    blocks: int
    taken: Kinds
    times: Mapping[str, float]
    chosen: str
    alone: Mapping[str, float]
    basis: Basis = "modelled"


def blocks(view: GraphView, sites: Sequence[Site]) -> list[Block]:
    """The blocks that hold `sites`, by the first numbered module on their path."""
    by_path: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        by_path[_block_path(site.path)].append(site)
    span: dict[str, tuple[int, int]] = {}
    for index, node in enumerate(view.nodes):
        path = _block_path(module_path(node))
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


def _block_path(path: str) -> str:
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
        price: times of a block with some of its sites taken by kernels.

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
    """No kernel, each kind alone, all of them, and from the best of these whatever one more kind makes better."""
    kinds = list(dict.fromkeys(_kind(s) for s in block.sites))
    trials = _Trials(block, price)
    none, *single, _ = trials.run([frozenset(), *(frozenset([kind]) for kind in kinds), frozenset(kinds)])
    alone: dict[str, float] = defaultdict(float)
    for kind, found in zip(kinds, single, strict=True):
        alone[str(kind[0])] += trials.us(found) - trials.us(none)
    best = trials.least()
    while True:
        trials.run([best | {kind} for kind in kinds])
        better = trials.least()
        if better == best:
            break
        best = better
    least = trials.times[best]
    if least.us > trials.us(none) * (1 - MARGIN) - least.noise_us:
        best = none
    times = {trials.names[kinds]: priced.us for kinds, priced in trials.times.items()}
    return Choice(block.path, 1, best, times, trials.names[best], alone, price.basis)


class _Trials:
    """What was priced of one block, by the kinds of site that kernels take in it."""

    def __init__(self, block: Block, price: Price) -> None:
        self._block, self._price = block, price
        self.times: dict[Kinds, Priced] = {}
        self.names: dict[Kinds, str] = {}

    def run(self, wanted: Sequence[Kinds]) -> list[Kinds]:
        """Price those that are new, together. For each the kinds that it comes to, without those inside larger sites."""
        taken = [_largest([s for s in self._block.sites if _kind(s) in kinds]) for kinds in wanted]
        found = [frozenset(_kind(s) for s in sites) for sites in taken]
        new = {kinds: sites for kinds, sites in zip(found, taken, strict=True) if kinds not in self.times}
        if new:
            self.times.update(zip(new, self._price(self._block, list(new.values())), strict=True))
        for kinds, sites in new.items():
            name, known = kernels_of(sites), list(self.names.values())
            number = next(i for i in itertools.count(1) if (name if i == 1 else f"{name} ({i})") not in known)
            self.names[kinds] = name if number == 1 else f"{name} ({number})"
        return found

    def us(self, kinds: Kinds) -> float:
        return self.times[kinds].us

    def least(self) -> Kinds:
        """The set with the least time, at its worst; of equal ones the smallest."""
        worst = {kinds: t.us + t.noise_us for kinds, t in self.times.items()}
        return min(worst, key=lambda kinds: (worst[kinds], len(kinds)))


def _largest(sites: Sequence[Site]) -> list[Site]:
    """Without sites that lie inside a larger one."""
    owner: dict[Node, Site] = {}
    for site in sorted(sites, key=lambda s: len(s.interior)):
        owner.update(dict.fromkeys((*site.interior, *site.outputs), site))
    return [s for s in sites if all(owner[n] is s for n in s.outputs)]


def kernels_of(sites: Sequence[Site]) -> str:
    """ "qkv:triple x2 + attention:sdpa"; "none" for no site."""
    counts: dict[str, int] = defaultdict(int)
    for site in sites:
        sizes = site.shapes.get("sequence", "")
        counts[f"{site.kind}:{site.form}" + (f"[{sizes}]" if site.kind == "qkv" else "")] += 1
    return " + ".join(f"{name} x{n}" if n > 1 else name for name, n in counts.items()) or "none"
