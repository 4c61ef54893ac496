"""The blocks of the model and the kernel calls in them, as records of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..fusion.boundary.block_map import KernelSpan
from ..fusion.boundary.compare import RewriteEffect
from ..site import SiteKey
from .build_predicted import rounded, tensor_info
from .model import BlockInfo, CallInfo, PartInfo, UserInfo

__all__ = ["blocks_of", "calls_of"]


def blocks_of(change: RewriteEffect, graph: int, ids: Mapping[SiteKey, str]) -> Iterator[BlockInfo]:
    """The blocks of one graph; `ids` are the ids of its sites in the report."""
    for strip in change.strips:
        yield BlockInfo(
            path=strip.path,
            graph=graph,
            before=tuple(_part(p, ids) for p in strip.before),
            after=tuple(_part(p, ids) for p in strip.after),
        )


def _part(part: KernelSpan, ids: Mapping[SiteKey, str]) -> PartInfo:
    return PartInfo(
        kind=part.kind,  # type: ignore[arg-type]
        ops=part.ops,
        nodes=part.nodes,
        reads=part.reads,
        writes=part.writes,
        us=rounded(part.us),
        site="" if part.site is None else ids[part.site.key],
    )


def calls_of(change: RewriteEffect, graph: int, ids: Mapping[SiteKey, str]) -> Iterator[CallInfo]:
    """The kernel calls of one graph; `ids` are the ids of its sites in the report."""
    for one in change.calls:
        yield CallInfo(
            site=ids[one.site.key],
            graph=graph,
            name=one.call,
            operands=tuple(map(tensor_info, one.operands)),
            results=tuple(map(tensor_info, one.results)),
            users=tuple(UserInfo(name=name, op=op, path=path) for name, op, path in one.users),
        )
