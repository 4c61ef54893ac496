"""Fuzz the passes with randomly respelled small programs and close-but-wrong ones, and check that rewrites compute the same.

    python tools/fuzz.py                                     100,000 cases, each site proved first; every third is close but wrong
    python tools/fuzz.py --only wrong --proof structural    what the guards refuse without a proof
    python tools/fuzz.py --seed 4711 --cases 1 --show        one case

Case N is the same on every machine, and an interrupted run prints the --seed to continue with. Exit code 1 on a wrong rewrite, a
crash, a case that the harness could not judge, or when fewer than 99 % of the equivalent respellings are found.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "lib"))

import torch  # noqa: E402
import typer  # noqa: E402
from fuzz import GOAL, Judge, Tally, drawn, judged, ran  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn  # noqa: E402
from rich.table import Table  # noqa: E402

CHUNK = 50
LISTED = 5


class Only(StrEnum):
    BOTH = "both"
    EQUIVALENT = "equivalent"
    WRONG = "wrong"


class Verify(StrEnum):
    NUMERIC = "numeric"
    STRUCTURAL = "structural"


def main(
    cases: Annotated[int, typer.Option(min=1, help="Number of cases.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Number of the first case.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes, with one thread each.")] = 1,
    only: Annotated[
        Only, typer.Option(help="Equivalent cases, close-but-wrong cases, or both, with every third close but wrong.")
    ] = Only.BOTH,
    proof: Annotated[
        Verify, typer.Option(help="Prove each site before it is rewritten, or rely on structure alone.")
    ] = Verify.NUMERIC,
    show: Annotated[bool, typer.Option(help="Print every case with its graph and verdict.")] = False,
) -> None:
    """Run cases and print the results by respelling and by change."""
    quiet()
    if show:
        for number in range(seed, seed + cases):
            _show(number, only, proof)
        return
    tally, done, start = Tally(), 0, time.perf_counter()
    columns: list[Any] = [*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("cases", total=cases)
        try:
            for found, count in chunks(seed, cases, jobs, only, proof):
                tally.join(found)
                done += count
                progress.update(
                    task, advance=count, description=f"cases ({len(tally.bad)} bad)" if tally.bad else "cases"
                )
        except KeyboardInterrupt:
            sys.stderr.write(f"fuzz: interrupted; continue with --seed {seed + done} --cases {cases - done}\n")
    summary(tally, done, time.perf_counter() - start, proof)
    raise typer.Exit(bool(tally.bad or tally.faults) or tally.found < GOAL or done < cases)


def quiet() -> None:
    """Use one thread, and silence the log: edits that do not fit make fake tensors raise."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)


def chunks(seed: int, cases: int, jobs: int, only: str, proof: str) -> Iterator[tuple[Tally, int]]:
    """Tallies of chunks of cases, ordered by case number."""
    runs = [range(at, min(at + CHUNK, seed + cases)) for at in range(seed, seed + cases, CHUNK)]
    work = partial(ran, judge=Judge(proof), kind=only)
    context = multiprocessing.get_context("spawn")
    with nullcontext() if jobs == 1 else context.Pool(jobs, _start, (str(proof), str(only))) as pool:
        results = map(work, runs) if pool is None else pool.imap(_work, runs)
        yield from zip(results, map(len, runs), strict=True)


def _start(proof: str, only: str) -> None:
    quiet()
    _of_process.update(judge=Judge(proof), kind=only)


_of_process: dict[str, Any] = {}


def _work(numbers: range) -> Tally:
    return ran(numbers, **_of_process)


def _show(number: int, only: str, proof: str) -> None:
    from fuzz.tally import is_wrong

    verdict = judged(drawn(number, is_wrong(number, only)), Judge(proof))
    print(f"{number}: {verdict.status} {verdict.found}\n{verdict.text}\n")


def summary(tally: Tally, done: int, seconds: float, proof: str) -> None:
    console = Console()
    console.print(_table("respelling", tally, wrong=False))
    console.print(_table("close but wrong", tally, wrong=True))
    for title, texts in (("bad", tally.bad), ("equivalent and not found", tally.missed)):
        for text in texts[:LISTED]:
            console.print(f"{title}: {text}\n", markup=False, highlight=False, soft_wrap=True)
    for number, text in list(tally.faults.items())[:LISTED]:
        console.print(f"fault of the harness, --seed {number}: {text}\n", markup=False, highlight=False, soft_wrap=True)
    bad = {
        k: sum(t[k] for t in (tally.equivalent, tally.lenient, tally.wrong))
        for k in ("wrong", "mistaken", "crash", "void")
    }
    console.print(f"{done:,} cases in {seconds:.0f} s, proof={proof}; {bad['void']:,} could not be made")
    if tally.numbers:
        console.print(f"bad cases: --seed {tally.numbers}")
    if tally.faults:
        console.print(
            f"the harness failed in {len(tally.faults)} more, which are not judged: --seed {sorted(tally.faults)}"
        )
    equivalent = tally.equivalent.total() - tally.equivalent["void"]
    console.print(
        f"equivalent respellings found: {tally.found:.2%} of {equivalent:,}; {tally.lenient['left']:,} more may be left alone"
    )
    wrong = tally.wrong.total() - tally.wrong["void"]
    console.print(f"close but wrong, without a wrong rewrite: {tally.refused:.2%} of {wrong:,}")
    console.print(
        f"wrong rewrites: {bad['wrong']}; found as what they are not: {bad['mistaken']}; crashes: {bad['crash']}"
    )


def _table(title: str, tally: Tally, wrong: bool) -> Table:
    from fuzz import RESPELLINGS, WRONG

    table = Table(title, "cases", "found" if not wrong else "rewritten, equal", "left alone", "wrong", "crash")
    for name in WRONG if wrong else RESPELLINGS:
        of = {s: tally.by_name[name, s] for s in ("found", "left", "wrong", "mistaken", "crash")}
        total = sum(of.values())
        if total:
            share = f"{of['found'] / total:.1%}"
            table.add_row(name, str(total), share, str(of["left"]), str(of["wrong"] + of["mistaken"]), str(of["crash"]))
    return table


if __name__ == "__main__":
    typer.run(main)
