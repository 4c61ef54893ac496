"""`fluxrewrite verify`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CheckFailed, InputError
from .shared import Format, counted, show, write

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..kernels.matrix import Case, Result

__all__ = ["verify"]

_NOTE = """
Limits: relative Frobenius error as shown, cosine 0.9999. Logits of 10,000:
fp32 scores are multiples of 2^-10, two of which are the limit; bf16
norm_rope_attention rounds q and k after the norm, which moves such scores by
tens: cosine 0.99, and the error that belongs to it.
"""


class SimulatorName(StrEnum):
    """What runs the kernels."""

    EMULATOR = "emulator"
    NKI = "nki"
    BOTH = "both"


def verify(
    kernels: Annotated[bool, typer.Option("--kernels", help="Check kernels against float64.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A representative part, in under half a minute.")] = False,
    filter: Annotated[str | None, typer.Option(help="Only cases with this in their name, as rope or 'attention fp32'.")] = None,
    provider: Annotated[str, typer.Option(help="Whose kernels, as for inspect.")] = "builtin",
    simulator: Annotated[SimulatorName | None, typer.Option(help="emulator: this project's; nki: AWS's; both compares the two. "
                                                             "Default: nki where it is installed, beside ours.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    format: Annotated[Format, typer.Option(help="text for people, json for programs.")] = Format.TEXT,
) -> None:  # fmt: skip
    """Check that kernels compute what their ops say, in a simulator and against float64."""
    if not kernels:
        raise InputError("nothing to verify; give --kernels: fluxrewrite verify --kernels --quick")
    if seed < 0:
        raise InputError(f"--seed {seed}: a number from 0 on")
    from ..kernels.matrix import run_case, simulators
    from ..provider import implementations

    tools = simulators(None if simulator is None else simulator.value)
    if provider == "reference":
        raise InputError("provider 'reference' has no kernels to verify; choose builtin")
    found = implementations(provider)
    chosen = _chosen(found, quick, filter)
    start = perf_counter()
    results: list[Result] = []
    with _one_thread(), counted("checking", len(chosen)) as step:
        for case in chosen:
            results += run_case(case, tools, provider, seed)
            step(case.kernel)
    seconds = perf_counter() - start
    if format is Format.JSON:
        write(json.dumps(_record(results, provider, seed, seconds), indent=2) + "\n", None)
    else:
        from rich.console import Group

        show(Group(*_parts(results, provider, seed, seconds)))
    _judge(results)


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


def _chosen(kernels: Any, quick: bool, filter: str | None) -> list[Case]:
    from ..kernels.matrix import cases

    chosen = [c for c in cases() if c.kernel in kernels and (c.quick or not quick) and (filter or "") in str(c)]
    if not chosen:
        raise InputError(f"--filter {filter!r} leaves no case; names look like {next(iter(cases()))}")
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
