"""`fluxrewrite verify --kernels`: a provider's kernels by themselves, in a simulator."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..errors import CheckFailed, InputError
from .common import Format, counted, show, write

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..provider.check_suite import CheckCase, Result, Suite

__all__ = ["check_kernels"]

_NOTE = """
Limits: relative Frobenius error as shown, cosine 0.9999. Logits of 10,000:
fp32 scores are multiples of 2^-10, two of which are the limit; bf16
norm_rope_attention rounds q and k after the norm, which moves such scores by
tens: cosine 0.99, and the error that belongs to it.
"""


def check_kernels(
    kernels: str | None,
    quick: bool,
    filter: str | None,
    provider: str,
    simulator: str | None,
    seed: int,
    format: Format,
    output: Path | None,
) -> None:
    """Check that kernels (comma-separated, all when None) compute what their ops say, against float64."""
    from ..provider.registry import implementations, suite_of

    suite = suite_of(provider)
    tools = suite.simulators(simulator)
    found = _named(kernels, implementations(provider), provider)
    chosen = _chosen(suite, found, quick, filter)
    start = perf_counter()
    results: list[Result] = []
    with _one_thread(), counted("checking", len(chosen)) as step:
        for case in chosen:
            results += suite.run_case(case, tools, provider, seed)
            step(case.kernel)
    seconds = perf_counter() - start
    if format is Format.JSON:
        write(json.dumps(_record(results, provider, seed, seconds), indent=2) + "\n", output)
    else:
        from rich.console import Group

        show(Group(*_parts(results, provider, seed, seconds)), output)
    _judge(results)


def _named(kernels: str | None, offered: Any, provider: str) -> Any:
    """The kernels that were asked for. Raises InputError for one that the provider does not have."""
    if kernels is None:
        return offered
    words = [w.strip() for w in kernels.split(",") if w.strip()]
    unknown = [w for w in words if w not in offered]
    if unknown or not words:
        raise InputError(
            f"--kernels {kernels!r}: {provider} has no kernel {unknown[0] if unknown else ''!r} to check against float64; "
            f"it has {', '.join(sorted(offered))} (forms belong to the sites of a model: fluxrewrite verify MODEL)"
        )
    return words


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch use one thread: many small products, whose threads wait long for each other where a machine is busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _chosen(suite: Suite, kernels: Any, quick: bool, filter: str | None) -> list[CheckCase]:
    cases = suite.cases()
    chosen = [c for c in cases if c.kernel in kernels and (c.quick or not quick) and (filter or "") in str(c)]
    if not chosen:
        raise InputError(f"--filter {filter!r} leaves no case; names look like {cases[0]}")
    return chosen


def _judge(results: Sequence[Result]) -> None:
    """Raise CheckFailed when a limit does not hold, with the worst case."""
    failed = [r for r in results if not r.passed]
    if not failed and any(not r.outside for r in results):
        return
    if not failed:
        raise CheckFailed("no case was run: all are outside the limits of the provider")
    worst = max(failed, key=lambda r: r.excess)
    found = worst.note or f"error {worst.error:.2g} (limit {worst.tolerance:.2g}), cosine {worst.cosine:.6f}"
    raise CheckFailed(f"{len(failed)} of {len(results)} cases fail; worst: {worst.case} ({worst.simulator}): {found}")


def _record(results: Sequence[Result], provider: str, seed: int, seconds: float) -> dict[str, Any]:
    """The results for programs; what is no number is null."""
    rows = [{**asdict(r), "passed": r.passed} for r in results]
    for row in rows:
        row.update({k: None for k in ("error", "cosine") if row[k] != row[k] or abs(row[k]) == float("inf")})
    return {"provider": provider, "seed": seed, "seconds": round(seconds, 1), "cases": rows}


def _parts(results: Sequence[Result], provider: str, seed: int, seconds: float) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    groups: dict[tuple[str, str, str, float], list[Result]] = {}
    for r in (r for r in results if not r.outside):
        groups.setdefault((r.simulator, r.kernel, r.dtype, r.logits), []).append(r)
    for simulator in dict.fromkeys(key[0] for key in groups):
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for name in ("kernel", "dtype", "logits", "cases", "failed", "error", "limit", "1 - cosine"):
            table.add_column(name, justify="left" if name in ("kernel", "dtype") else "right", no_wrap=True)
        for (where, kernel, dtype, logits), rows in groups.items():
            if where == simulator:
                table.add_row(kernel, dtype, f"{logits:.0f}" if logits else "", *_figures(rows))
        yield Text(f"{provider}, {simulator}; errors and cosines of the worst case", style="bold")
        yield table
        yield Text()
    yield Text("Worst cases:")
    for rows in groups.values():
        worst = max(rows, key=lambda r: r.excess)
        failed = "" if worst.passed else f": FAILED {worst.note}"
        yield Padding(Text(worst.case + failed, style="red" if failed else ""), (0, 0, 0, 2), expand=False)
    yield Text(_NOTE, style="dim")
    outside = sum(r.outside for r in results)
    yield Text(
        f"{len(results) - outside} checks in {seconds:.0f} s, seed {seed}; {outside} outside the provider's limits"
    )


def _figures(rows: Sequence[Result]) -> list[str]:
    """Cells of a group: how many, how many failed, and the worst case's figures with their limit."""
    worst = max(rows, key=lambda r: r.excess)
    failed = sum(not r.passed for r in rows)
    figures = [f"{worst.error:.1e}", f"{worst.tolerance:.1e}", f"{max(1 - worst.cosine, 0):.1e}"]
    return [str(len(rows)), str(failed), *figures]
