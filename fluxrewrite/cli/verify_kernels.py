"""`fluxrewrite verify --kernels`: a provider's kernels by themselves, in a simulator."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
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
Limits: relative Frobenius error as shown, cosine 0.9999. With logits of
10,000, fp32 scores are multiples of 2^-10, and the limit is two of these;
bf16 norm_rope_attention rounds q and k after the norm, which moves such
scores by tens: there the limit is cosine 0.99 and the corresponding error.
"""


@dataclass(frozen=True)
class KernelCheck:
    """What is checked of a provider's kernels.

    Attributes:
        kernels: names, comma-separated; None for all.
        quick: only the representative cases.
        filter: only cases whose name contains this.
        provider: as `fluxrewrite.backend` takes it.
        simulator: "emulator", "nki" or "both"; None for all that are installed.
        seed: of the random inputs.
    """

    kernels: str | None
    quick: bool
    filter: str | None
    provider: str
    simulator: str | None
    seed: int


def check_kernels(check: KernelCheck, format: Format, output: Path | None) -> None:
    """Run kernels in a simulator, compare them with their ops in float64, and print the result.

    Raises InputError when nothing matches, and CheckFailed when a case exceeds its limits or none could run.
    """
    from ..provider.registry import implementations, suite_of

    suite = suite_of(check.provider)
    tools = suite.simulators(check.simulator)
    chosen = _chosen(suite, _named(check, implementations(check.provider)), check)
    start = perf_counter()
    results: list[Result] = []
    with _one_thread(), counted("checking", len(chosen)) as step:
        for case in chosen:
            results += suite.run_case(case, tools, check.provider, check.seed)
            step(case.kernel)
    seconds = perf_counter() - start
    if format is Format.JSON:
        write(json.dumps(_record(results, check, seconds), indent=2) + "\n", output)
    else:
        from rich.console import Group

        show(Group(*_parts(results, check, seconds)), output)
    _judge(results)


def _named(check: KernelCheck, offered: Collection[str]) -> Collection[str]:
    """The kernels to check. Raises InputError for one that the provider does not have."""
    if check.kernels is None:
        return offered
    words = [w.strip() for w in check.kernels.split(",") if w.strip()]
    unknown = [w for w in words if w not in offered]
    if unknown or not words:
        raise InputError(
            f"--kernels {check.kernels!r}: {check.provider} has no kernel {unknown[0] if unknown else ''!r} to check against "
            f"float64; it has {', '.join(sorted(offered))} (forms are for the sites of a model: fluxrewrite verify MODEL)"
        )
    return words


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch use one thread. The cases are many small products, and on a busy machine threads mostly wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _chosen(suite: Suite, kernels: Collection[str], check: KernelCheck) -> list[CheckCase]:
    cases = suite.cases()
    text = check.filter or ""
    chosen = [c for c in cases if c.kernel in kernels and (c.quick or not check.quick) and text in str(c)]
    if not chosen:
        raise InputError(f"--filter {check.filter!r} matches no case; a name looks like {cases[0]}")
    return chosen


def _judge(results: Sequence[Result]) -> None:
    """Raise CheckFailed, naming the worst case, when one exceeds its limits; also when none ran, which proves nothing."""
    failed = [r for r in results if not r.passed]
    if not failed and any(not r.outside for r in results):
        return
    if not failed:
        raise CheckFailed("no case ran: all are outside the limits of the provider")
    worst = max(failed, key=lambda r: r.excess)
    found = worst.note or f"error {worst.error:.2g} (limit {worst.tolerance:.2g}), cosine {worst.cosine:.6f}"
    raise CheckFailed(f"{len(failed)} of {len(results)} cases fail; worst: {worst.case} ({worst.simulator}): {found}")


def _record(results: Sequence[Result], check: KernelCheck, seconds: float) -> dict[str, Any]:
    """The results as JSON; NaN and inf, which JSON does not have, become null."""
    rows = [{**asdict(r), "passed": r.passed} for r in results]
    for row in rows:
        row.update({k: None for k in ("error", "cosine") if row[k] != row[k] or abs(row[k]) == float("inf")})
    return {"provider": check.provider, "seed": check.seed, "seconds": round(seconds, 1), "cases": rows}


def _parts(results: Sequence[Result], check: KernelCheck, seconds: float) -> Iterator[RenderableType]:
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
        yield Text(f"{check.provider}, {simulator}; errors and cosines of the worst case", style="bold")
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
        f"{len(results) - outside} checks in {seconds:.0f} s, seed {check.seed}; {outside} outside the provider's limits"
    )


def _figures(rows: Sequence[Result]) -> list[str]:
    """Cells of a group: the number of cases, how many failed, and the figures of the worst one with its limit."""
    worst = max(rows, key=lambda r: r.excess)
    failed = sum(not r.passed for r in rows)
    figures = [f"{worst.error:.1e}", f"{worst.tolerance:.1e}", f"{max(1 - worst.cosine, 0):.1e}"]
    return [str(len(rows)), str(failed), *figures]
