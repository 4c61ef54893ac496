"""A verification on several ranks: each checks its own shards, and all report the worst result."""

from __future__ import annotations

from collections.abc import Sequence

from ...cost.data_files import DataRecord
from ...errors import RewriteError
from ..rendezvous import RankGroup
from .records import LoopResult, SiteResult

__all__ = ["of_all_ranks"]


class _RankFindings(DataRecord):
    """What one rank found."""

    sites: tuple[SiteResult, ...]
    loop: LoopResult


def of_all_ranks(
    rank_group: RankGroup, sites: Sequence[SiteResult], loop: LoopResult
) -> tuple[list[SiteResult], LoopResult]:
    """Combine the results of all ranks: for each site that of its worst rank, and the loop of the first rank.

    The loop is taken from one rank because the latents are the same on all. Every rank returns the same.

    Raises:
        RewriteError: the ranks did not check the same sites.
        RankError: a rank ended or did not answer in time.
    """
    mine = _RankFindings(sites=tuple(sites), loop=loop).model_dump_json(round_trip=True)
    findings = [_RankFindings.model_validate_json(text) for text in rank_group.gather("findings", mine)]
    checked = [[(s.graph, s.kind, s.form, s.path, s.node, s.choice) for s in found.sites] for found in findings]
    other = next((rank for rank, names in enumerate(checked) if names != checked[0]), None)
    if other is not None:
        raise RewriteError(
            f"rank {other} checked {len(checked[other])} sites and rank 0 checked {len(checked[0])}, and they differ; "
            "give every rank the same options and model"
        )
    return [_worst(results) for results in zip(*(found.sites for found in findings), strict=True)], findings[0].loop


def _worst(results: Sequence[SiteResult]) -> SiteResult:
    rank, worst = max(enumerate(results), key=lambda found: found[1].excess)
    return worst.model_copy(update={"rank": rank})
