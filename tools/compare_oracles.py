"""Compare predicted fusion with what a compiler really fuses: lost fusions and extra bytes for each set of kernels.

    python tools/compare_oracles.py                                        Inductor, in this environment
    python tools/compare_oracles.py --compiler xla --python .venv-xla/bin/python     XLA, in the environment of `make xla`

The model is a FLUX.2 of real widths with 1 double and 2 single blocks. Nothing is computed and no weight is allocated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.fx import GraphModule

from fluxrewrite.analysis import analyse
from fluxrewrite.errors import InputError
from fluxrewrite.fusion import Fusion, fuse, load_rules
from fluxrewrite.graph import GraphView
from fluxrewrite.graph.edges import edges
from fluxrewrite.graph.modules import as_module
from fluxrewrite.measure.oracle.compare import agreement, lost_fusions, rank_agreement
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.capture import capture_spec
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Site

VARIANTS = {
    "qkv": "qkv",
    "rope": "rope",
    "attention": "attention",
    "norm_rope_attention": "norm_rope_attention",
    "qkv + attention": "qkv,attention",
    "all": "qkv,rope,attention,norm_rope_attention",
}
CONFIG = {
    "_class_name": "Flux2Transformer2DModel", "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 24,
    "attention_head_dim": 128, "joint_attention_dim": 7680, "in_channels": 128, "guidance_embeds": False,
}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Oracle = Callable[[GraphModule], Fusion]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compiler", choices=("inductor", "xla"), default="inductor")
    parser.add_argument("--python", type=Path, help="with --compiler xla: the Python of the environment with torch-xla")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--image-tokens", type=int, default=256)
    parser.add_argument("--text-tokens", type=int, default=512)
    given = parser.parse_args()
    try:
        if given.compiler == "xla" and os.environ.get("XLA_HLO_DEBUG") != "1":
            return elsewhere(given.python)
        rows = compare(trace(given), given.compiler)
    except InputError as error:
        sys.stderr.write(f"compare_oracles: {error}\n")
        return 2
    print(table(rows))
    return 0


def elsewhere(python: Path | None) -> int:
    """Run this command again with torch-xla and the variables that XLA reads when a process starts."""
    from fluxrewrite.measure.oracle.xla_graph import environment

    python = python or Path(".venv-xla/bin/python")
    if not python.is_file():
        raise InputError(f"{python}: no such interpreter; run make xla, or name one with --python")
    with tempfile.TemporaryDirectory() as dump:
        environ = {**os.environ, **environment(Path(dump))}
        return subprocess.run([str(python), __file__, *sys.argv[1:]], env=environ, check=False).returncode


def trace(given: argparse.Namespace) -> GraphModule:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIG))
        shapes = Shapes(given.image_tokens, given.text_tokens, 1)
        return capture_spec(find_model(folder), shapes, DTYPES[given.dtype]).graphs[0]


def oracle(compiler: str) -> Oracle:
    if compiler == "xla":
        from fluxrewrite.measure.oracle.xla_graph import xla_fusion_of

        return lambda gm: xla_fusion_of(gm, touched=True)
    from fluxrewrite.measure.oracle.inductor import inductor_fusion

    return lambda gm: inductor_fusion(gm, [n.meta["example_value"] for n in gm.graph.find_nodes(op="placeholder")])


def compare(gm: GraphModule, compiler: str) -> list[dict[str, object]]:
    """One row per set of kernels; the first row is the graph without kernels."""
    fusion_of, rules, view = oracle(compiler), load_rules(compiler), GraphView(gm.graph)
    predicted, actual = fuse(view, rules).fusion, fusion_of(gm)
    pairs = [(p.name, c.name) for p, c in edges(view)]
    fused = [frozenset(e for e in pairs if f.fused(*e)) for f in (predicted, actual)]
    rows = [_row("no kernel", predicted.bytes, actual.bytes, *fused)]
    rows[0]["by"] = actual.by
    for name, kernels in VARIANTS.items():
        analysed, graph = analyse(gm, Selection.of(kernels, "reference"), "all")
        rewritten = as_module(gm, graph)
        after, real = fuse(GraphView(rewritten.graph), rules).fusion, fusion_of(rewritten)
        sites = [d.finding for d in analysed.plan.decisions if d.choice == "kernel" and isinstance(d.finding, Site)]
        outside = _outside(pairs, sites)
        lost = lost_fusions(predicted, after, outside), lost_fusions(actual, real, outside)
        rows.append(_row(name, after.bytes - predicted.bytes, real.bytes - actual.bytes, *lost))
    return rows


def _outside(pairs: Sequence[tuple[str, str]], sites: Sequence[Site]) -> list[tuple[str, str]]:
    """The pairs that are not inside a single kernel call."""
    owner = {n.name: i for i, s in enumerate(sites) for n in (*s.interior, *s.outputs)}
    return [(a, b) for a, b in pairs if a not in owner or owner[a] != owner.get(b)]


def _row(name: str, predicted: int, actual: int, guessed: frozenset, found: frozenset) -> dict[str, object]:
    found_both = agreement(guessed, found)
    return {"name": name, "predicted": predicted, "actual": actual, "agreement": found_both}


def table(rows: Sequence[dict[str, object]]) -> str:
    first, *variants = rows
    lines = [
        f"{first['by']}, pairs of operations fused and MB moved without kernels; then what each set of kernels changes",
        "",
        "| kernels | MB predicted | MB actual | pairs predicted | actual | precision | recall |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        a = row["agreement"]
        sign = "" if row is first else "+"
        lines.append(
            f"| {row['name']} | {row['predicted'] / 1e6:{sign}.2f} | {row['actual'] / 1e6:{sign}.2f} | {a.predicted} | {a.actual} "
            f"| {a.precision:.3f} | {a.recall:.3f} |"
        )
    order = rank_agreement(
        *({r["name"]: round(r[side] / 1e5) for r in variants} for side in ("predicted", "actual"))  # type: ignore[misc]
    )
    worst = max(_error(r) for r in variants)
    lines += [
        "",
        f"Rank agreement of the variants by extra bytes (Kendall): {order:.3f}. Worst error of extra bytes: {worst:.1%}.",
    ]
    return "\n".join(lines)


def _error(row: dict) -> float:
    return abs(row["predicted"] - row["actual"]) / max(abs(row["actual"]), 1e5)


if __name__ == "__main__":
    sys.exit(main())
