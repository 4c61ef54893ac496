"""`Fusion` records as JSON, to pass them from one process to another."""

from __future__ import annotations

import json
from dataclasses import asdict

from ...fusion.groups import Fusion, Group

__all__ = ["fusion_from_json", "fusion_to_json"]


def fusion_to_json(fusion: Fusion) -> str:
    """JSON of a `Fusion`. Nodes are sorted, so that equal fusions have equal texts."""
    return json.dumps({"by": fusion.by, "groups": [{**asdict(g), "nodes": sorted(g.nodes)} for g in fusion.groups]})


def fusion_from_json(text: str) -> Fusion:
    """Read the result of `fusion_to_json`."""
    read = json.loads(text)
    return Fusion(read["by"], tuple(Group(**{**g, "nodes": frozenset(g["nodes"])}) for g in read["groups"]))
