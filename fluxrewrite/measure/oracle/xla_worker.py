"""The process that `fluxrewrite.measure.oracle.xla` runs in the torch-xla environment: trace, compile with XLA, write JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from ...analysis import analyse
from ...errors import InputError
from ...graph.modules import as_module
from ...models.capture import capture_spec
from ...models.registry import Shapes, find_model
from ...rewrite.selection import Selection
from .fusion_json import fusion_to_json
from .xla_graph import dump_folder, xla_fusion_of

__all__ = ["main", "traced"]


def traced(model: str, shapes: Shapes, kernels: str | None, dtype: torch.dtype) -> GraphModule:
    """The single graph of a model, with the sites of `kernels` replaced by kernel calls; None replaces none.

    Raises InputError when the model cannot be traced as one graph.
    """
    captured = capture_spec(find_model(model), shapes, dtype)
    if len(captured.graphs) != 1:
        where = "".join(f"; graph break at {b.location}: {b.reason}" for b in captured.breaks[:1])
        raise InputError(f"{model}: {len(captured.graphs)} graphs, but the oracle needs a single one{where}")
    if kernels is None:
        return captured.graphs[0]
    gm = captured.graphs[0]
    return as_module(gm, analyse(gm, Selection.of(kernels), "all")[1])


def main(request: Path, answer: Path) -> int:
    """Read the request of `.xla` and write a `Fusion` as JSON. Returns 0, or 2 for bad input with one line on stderr."""
    try:
        dump_folder()
        given: dict[str, Any] = json.loads(request.read_text())
        dtype = getattr(torch, given["dtype"])
        gm = traced(given["model"], Shapes(**given["shapes"]), given["kernels"], dtype)
        answer.write_text(fusion_to_json(xla_fusion_of(gm, touched=given["touched"])))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
