"""Which eligible sites become kernel calls: for each distinct block of the model, the set with the shortest time."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch.fx import Node

from ..graph.module_paths import block_path, module_path
from ..graph.view import GraphView
from ..site import Site

__all__ = [
    "MARGIN",
    "Basis",
    "Block",
    "BlockChoice",
    "Price",
    "Priced",
    "SiteKind",
    "blocks",
    "choose",
    "kinds_of",
    "label",
]

MARGIN = 0.02
"""A set of kernels must save at least this share of a block's time: neither models nor measurements are more accurate."""

Basis = Literal["modelled", "measured"]


@dataclass(frozen=True)
class SiteKind:
    """What sites that get the same decision have in common.

    Attributes:
        kind, form, dtype: as those of `Site`.
        shapes: sizes by name, in the order that the pass gives them.
        inline: written as plain operations, not taken by a kernel.
    """

    kind: str
    form: str
    shapes: tuple[tuple[str, int | str], ...]
    dtype: torch.dtype
    inline: bool

    @classmethod
    def of(cls, site: Site) -> SiteKind:
        """The kind of a site."""
        return cls(site.kind, site.form, tuple(site.shapes.items()), site.dtype, bool(site.inline))

    @property
    def sequence(self) -> int | str | None:
        """The sequence length, where the pass names one."""
        return dict(self.shapes).get("sequence")


Kinds = frozenset[SiteKind]


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
        """Equal for blocks that get the same decision."""
        return (len(self.nodes), *(SiteKind.of(site) for site in self.sites))

    @property
    def family(self) -> tuple[object, ...]:
        """Equal for blocks that share a decision when prices are expensive: those of one module list with the same sites.

        It ignores the number of nodes, because the first and the last block of a list often differ from the others in an
        operation or two at their ends, and timing them separately would take as long again.
        """
        parts = self.path.split(".")
        return (".".join(parts[:-1]) if self.path else len(self.nodes), *(SiteKind.of(site) for site in self.sites))


class Price(Protocol):
    """The time of a block with kernels instead of some of its sites.

    Attributes:
        basis: where the times come from.
        expensive: each time takes seconds to obtain, so that only promising sets are priced.
    """

    basis: Basis
    expensive: bool

    def __call__(self, block: Block, candidates: Sequence[Sequence[Site]]) -> Sequence[Priced]:
        """One time for each candidate. A candidate is the sites that become kernel calls; none is the block as it is."""


@dataclass(frozen=True)
class Priced:
    """Microseconds of a block, infinite if it cannot run, and the smallest difference that is not noise."""

    us: float
    noise_us: float = 0.0


@dataclass(frozen=True)
class BlockChoice:
    """The decision for the sites of one kind of block.

    Attributes:
        block: path of the first such block.
        blocks: how many there are.
        taken: the kinds of site that become kernel calls or are written inline.
        times: microseconds of the block, by the names of the kernels in it.
        chosen: the names of the kernels taken.
        single_kernel_delta: microseconds that each kind of kernel adds on its own.
        basis: where the times come from.
    """

    block: str
    blocks: int
    taken: Kinds
    times: Mapping[str, float]
    chosen: str
    single_kernel_delta: Mapping[str, float]
    basis: Basis = "modelled"


def blocks(view: GraphView, sites: Sequence[Site]) -> list[Block]:
    """The blocks that contain `sites`, by the first numbered module on their path. Each call of a module is a block of its own."""
    paths = {block_path(site.path) for site in sites}
    runs = _runs(view, paths)
    members: dict[tuple[str, int], list[Site]] = defaultdict(list)
    for site in sites:
        path, at = block_path(site.path), view.order(site.outputs[0])
        starts = [first for first, _ in runs[path]]
        members[path, max(0, bisect.bisect_right(starts, at) - 1)].append(site)
    found = []
    for (path, number), held in members.items():
        inside = [view.order(n) for s in held for n in (*s.interior, *s.outputs, s.before)]
        first, last = runs[path][number] if runs[path] else (min(inside), max(inside))
        nodes = view.nodes[min(first, *inside) : max(last, *inside) + 1]
        computed = tuple(n for n in nodes if n.op in ("call_function", "call_method"))
        found.append(Block(path, tuple(held), computed))
    return found


def _runs(view: GraphView, paths: Collection[str]) -> dict[str, list[list[int]]]:
    """First and last node of each call of the modules `paths`. Two calls of one module are separated by nodes of another."""
    runs: dict[str, list[list[int]]] = {path: [] for path in paths}
    current = ""
    for index, node in enumerate(view.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        path = block_path(module_path(node))
        if path in runs and runs[path] and (path in (current, "")):
            runs[path][-1][1] = index
        elif path in runs:
            runs[path].append([index, index])
        current = path or current
    return runs


def kinds_of(sites: Iterable[Site]) -> Kinds:
    """The distinct kinds of some sites."""
    return frozenset(map(SiteKind.of, sites))


def choose(view: GraphView, sites: Sequence[Site], price: Price) -> tuple[list[Site], list[BlockChoice]]:
    """The sites to rewrite, and one `BlockChoice` for each distinct block.

    Args:
        view: the graph.
        sites: sites that may become kernel calls; they may overlap.
        price: time of a block with kernels instead of some of its sites.

    Returns:
        Sites that do not overlap, and the decision for each kind of block. A set is taken only if it is faster than no kernel
        by at least `MARGIN`.
    """
    decided: dict[tuple[object, ...], BlockChoice] = {}
    chosen: list[Site] = []
    for block in blocks(view, sites):
        alike = block.family if price.expensive else block.signature
        known = decided.get(alike)
        choice = _decide(block, price) if known is None else known
        decided[alike] = _counted(choice, known)
        chosen += _largest([s for s in block.sites if SiteKind.of(s) in choice.taken])
    return chosen, list(decided.values())


def _counted(choice: BlockChoice, known: BlockChoice | None) -> BlockChoice:
    if known is None:
        return choice
    return replace(known, blocks=known.blocks + 1)


def _decide(block: Block, price: Price) -> BlockChoice:
    """Price no kernel, each kind alone, each pair and all kinds; then grow the best of these by one kind at a time.

    Pairs are priced because two kernels can pay together where neither does alone: next to each other they share a border, and
    the fusion that is lost there is lost only once. All subsets would be exponential in the number of kinds. If prices are
    expensive, the pairs are skipped, and kinds that are certainly slower alone are left out of the growing.
    """
    kinds = list(dict.fromkeys(SiteKind.of(s) for s in block.sites))
    trials = _Trials(block, price)
    none, *single, _ = trials.run([frozenset(), *(frozenset([kind]) for kind in kinds), frozenset(kinds)])
    single_kernel_delta: dict[str, float] = defaultdict(float)
    for kind, found in zip(kinds, single, strict=True):
        single_kernel_delta[kind.kind] += 0.0 if kind.inline else trials.times[found].us - trials.times[none].us
    if price.expensive:
        kinds = [kind for kind, found in zip(kinds, single, strict=True) if trials.may_pay(found, none)]
    else:
        trials.run([frozenset(pair) for pair in itertools.combinations(kinds, 2)])
    trials.grow(trials.least(trials.times), kinds)
    best = trials.least(trials.times)
    found_us, none_us = trials.times[best], trials.times[none].us
    if found_us.us > none_us * (1 - MARGIN) - found_us.noise_us:
        best = none
    times = {label(block, taken): priced.us for taken, priced in trials.times.items()}
    return BlockChoice(block.path, 1, best, times, label(block, best), single_kernel_delta, price.basis)


class _Trials:
    """The priced sets of one block, by the kinds of site that become kernel calls."""

    def __init__(self, block: Block, price: Price) -> None:
        self._block, self._price = block, price
        self.times: dict[Kinds, Priced] = {}

    def run(self, wanted: Sequence[Kinds]) -> list[Kinds]:
        """Price the new sets in one call. Returns for each set the kinds that remain without sites inside larger ones."""
        taken = [_largest([s for s in self._block.sites if SiteKind.of(s) in kinds]) for kinds in wanted]
        found = [kinds_of(sites) for sites in taken]
        new = {kinds: sites for kinds, sites in zip(found, taken, strict=True) if kinds not in self.times}
        if new:
            self.times.update(zip(new, self._price(self._block, list(new.values())), strict=True))
        return found

    def grow(self, start: Kinds, kinds: Sequence[SiteKind]) -> None:
        """Add the kind that helps most, until none helps."""
        while True:
            wider = [found for found in self.run([start | {kind} for kind in kinds]) if found != start]
            if not wider or self._worst(self.least(wider)) >= self._worst(start):
                return
            start = self.least(wider)

    def least(self, sets: Iterable[Kinds]) -> Kinds:
        """The set with the shortest time at its upper end; of equal ones, the smallest."""
        return min(sets, key=lambda kinds: (self._worst(kinds), len(kinds)))

    def may_pay(self, kinds: Kinds, none: Kinds) -> bool:
        """Whether a set may be no slower than no kernel, given the noise."""
        return self.times[kinds].us - self.times[kinds].noise_us <= self.times[none].us

    def _worst(self, kinds: Kinds) -> float:
        return self.times[kinds].us + self.times[kinds].noise_us


def _largest(sites: Sequence[Site]) -> list[Site]:
    """Without sites inside a larger one. Of a site with an inline form in the list, the kernel call remains."""
    owner: dict[Node, Site] = {}
    for site in sorted(sites, key=lambda s: (len(s.interior), not s.inline)):
        owner.update(dict.fromkeys((*site.interior, *site.outputs), site))
    return [s for s in sites if all(owner[n] is s for n in s.outputs)]


def label(block: Block, taken: Kinds) -> str:
    """ "qkv:triple[256] + attention:sdpa x2"; "none" for no kind. Sizes distinguish kinds of one form."""
    counts = Counter(SiteKind.of(s) for s in block.sites)
    words = []
    for kind, count in counts.items():
        if kind not in taken:
            continue
        others = [k for k in counts if (k.kind, k.form, k.inline) == (kind.kind, kind.form, kind.inline)]
        size = f"[{_distinction(kind, others)}]" if len(others) > 1 else ""
        times = f" x{count}" if count > 1 else ""
        words.append(f"{'inline ' * kind.inline}{kind.kind}:{kind.form}{size}{times}")
    return " + ".join(words) or "none"


def _distinction(kind: SiteKind, others: Sequence[SiteKind]) -> str:
    """The sequence length if that distinguishes the kinds, else the number of the kind."""
    lengths = {k.sequence for k in others}
    return str(kind.sequence if len(lengths) == len(others) else others.index(kind) + 1)
