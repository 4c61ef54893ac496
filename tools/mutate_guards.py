"""Disable each guard of the passes and the matcher in turn, and check that some test fails without it.

    python tools/mutate_guards.py                                  all guards
    python tools/mutate_guards.py --only passes/rope/rope.py            the guards of one file
    python tools/mutate_guards.py --list                           list the guards
    python tools/mutate_guards.py --save guards.json --resume      after a change of tests: skip guards killed before

A guard is a condition that keeps the code from going on:

- of an `if` that ends in a refusal: no value, None, False, (), [], a Miss, Reason, Refusal or Unfit, a sentence, a failed
  match, a refusal made elsewhere and passed on (`if problem is not None: return problem`), continue, break, raise;
- of an `if` that returns something, in a function that otherwise ends in a refusal;
- of a `while` (except one over a worklist), of a `case`, and of `x if condition else None`;
- the operands of `and` or `all` that a function returns as its bool, and of `found or fail(...)`.

An operand that refuses on its own is a guard of its own, even if a local variable holds the condition. Operands that refuse
only together form one guard; if one of them has several operands itself, each of these is a guard too. Not guards are: an `if`
that only chooses between ways to go on, filters of comprehensions, which select what to look at, and `assert`, which narrows
types.

A disabled guard is still evaluated, but its result is ignored, so what it captures stays captured. Tests run in a copy of the
tree with a switch at every guard. All of them run first, to see which tests make each guard refuse; only these can detect that
it is gone. A guard that no test makes refuse has survived. tools/mutate_guards.toml lists the guards whose absence no test can
detect, with the reason. Exit code 1 if any other guard survives or an entry there no longer holds; 2 if no result is possible,
for example because tests fail with all guards in place.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "lib"))

import typer  # noqa: E402
from mutants import Guard, Outcome, Runner, Tree, Unfit  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn  # noqa: E402
from rich.table import Table  # noqa: E402

MATCHER = (
    *("graph/index_map", "graph/module_paths", "graph/shapes", "graph/view", "graph/views", "pattern"),
    *("rewrite/apply", "rewrite/base", "rewrite/checks", "rewrite/guards"),
)
FILES = ("passes/**/*.py", *(f"fluxrewrite/{name}.py" for name in MATCHER))
TESTS = (
    "tests/passes",
    "tests/fuzz",
    "tests/graph",
    "tests/test_pattern.py",
    "tests/test_reasons.py",
    *(f"tests/life/test_{name}.py" for name in ("aliases", "autocast", "func", "quantised")),
)
PRELOAD = (
    *("torch", "torch._dynamo", "torch._inductor.compile_fx", "diffusers", "hypothesis", "ml_dtypes"),
    *("pydantic.main", "rich.console", "rich.table", "typer"),
)


@dataclass(frozen=True)
class Job:
    """Where the guards are, and which tests could detect their absence."""

    root: Path = ROOT
    files: tuple[str, ...] = FILES
    tests: tuple[str, ...] = TESTS
    preload: tuple[str, ...] = PRELOAD
    reasons: Path = ROOT / "tools" / "mutate_guards.toml"

    def tree(self, only: list[str]) -> Tree:
        """The sources with guards, or those of them named in `only`. Raises Unfit where a pattern of `files` matches no file."""
        found: list[str] = []
        for pattern in self.files:
            matched = sorted(str(p.relative_to(self.root)) for p in self.root.glob(pattern))
            if not matched:
                raise Unfit(f"no file matches {pattern}; FILES names sources that have moved")
            found += matched
        return Tree(self.root, [file for file in found if not only or file in only])

    def equivalent(self) -> dict[tuple[str, str], str]:
        """The reasons why no test can detect it, by file and guard."""
        given = tomllib.loads(self.reasons.read_text()) if self.reasons.exists() else {}
        return {(file, key): reason for file, of_file in given.items() for key, reason in of_file.items()}


def main(
    only: Annotated[list[str] | None, typer.Option(metavar="FILE", help="Only this file; repeat for more.")] = None,
    tests: Annotated[list[str] | None, typer.Option(metavar="PATH", help="Only these tests; repeat for more.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes, with one thread each.")] = 1,
    save: Annotated[Path | None, typer.Option(help="Write the results to this file after each guard.")] = None,
    resume: Annotated[bool, typer.Option(help="Skip guards that the --save file lists as killed.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the guards and run nothing.")] = False,
) -> None:
    """Disable each guard and print the test that fails without it."""
    job = Job(tests=tuple(tests or TESTS))
    try:
        tree = job.tree(only or [])
        if unknown := sorted(set(only or ()) - set(tree.sources)):
            raise Unfit(f"no guards are checked in {', '.join(unknown)}")
        if resume and save is None:
            raise Unfit("--resume needs --save")
        if list_:
            for guard in tree.guards.values():
                print(f"{guard.file}:{guard.line}: {guard.function} {_condition(guard)}")
            print(f"{len(tree.guards)} guards")
            return
        start = time.perf_counter()
        found = run(job, tree, jobs, save, resume)
    except Unfit as error:
        sys.stderr.write(f"mutate_guards: {error}\n")
        raise typer.Exit(2) from error
    raise typer.Exit(not summary(found, job.equivalent(), tree, time.perf_counter() - start))


def run(job: Job, tree: Tree, jobs: int, save: Path | None = None, resume: bool = False) -> list[Outcome]:
    """The outcome of each guard of `tree`, in order."""
    before = _saved(save) if resume and save is not None and save.exists() else {}
    found = {n: o for n, g in tree.guards.items() if (o := _kept(before, g, tree)) is not None}
    left = [number for number in tree.guards if number not in found]
    if not left:
        return list(found.values())
    columns: list[Any] = [*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn()]
    with (
        tempfile.TemporaryDirectory(prefix="guards-") as folder,
        Runner(tree, Path(folder).resolve() / "tree", jobs, job.preload) as runner,
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("tests as they are", total=None)
        for _ in runner.record(job.tests):
            progress.advance(task)
        runner.control()
        progress.remove_task(task)
        task = progress.add_task("guards", total=len(left))
        for number, outcome in runner.kill(left):
            found[number] = outcome
            bad = sum(o.status in ("never", "survived") for o in found.values())
            progress.update(task, advance=1, description=f"guards ({bad} not detected)" if bad else "guards")
            if save is not None:
                _save(save, [found[n] for n in sorted(found)], tree)
    return [found[number] for number in sorted(found)]


def summary(found: list[Outcome], equivalent: Mapping[tuple[str, str], str], tree: Tree, seconds: float) -> bool:
    """Print the table of outcomes; return whether no guard survived and every listed reason holds."""
    console = Console()
    table = Table("guard", "refuses", "without it", title="Guards, each disabled in turn")
    counts: Counter[str] = Counter()
    wrong = []
    for outcome in found:
        guard = outcome.guard
        reason = equivalent.get((guard.file, guard.key))
        dead = outcome.status in ("killed", "timeout")
        status = "killed" if dead else "equivalent" if reason else outcome.status
        counts[status] += 1
        by = f"{outcome.by}\n  {outcome.how}" if outcome.status == "killed" else f"{outcome.by} does not end"
        shown = {"killed": by, "equivalent": f"equivalent: {reason}", "never": "never seen to refuse"}
        text = shown.get(status, f"survived {outcome.tests} tests in which it refuses")
        table.add_row(f"{guard.file}:{guard.line} {guard.function}", _condition(guard), text)
        if status in ("survived", "never"):
            wrong.append(f"{guard.file}:{guard.line}: {guard.key}: {text}")
        if reason and dead:
            wrong.append(f"{guard.file}:{guard.line}: {guard.key}: listed as equivalent, but killed by {outcome.by}")
    keys = {(guard.file, guard.key) for guard in tree.guards.values()}
    stale = [(file, key) for file, key in equivalent if file in tree.sources and (file, key) not in keys]
    wrong += [f"{file}: {key}: listed as equivalent, but there is no such guard" for file, key in stale]
    console.print(table, markup=False)
    for text in wrong:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    parts = [f"{counts[s]} {s}" for s in ("killed", "equivalent", "survived", "never") if counts[s]]
    console.print(f"{len(found)} guards in {seconds:.0f} s: {', '.join(parts)}")
    return not wrong


def _condition(guard: Guard) -> str:
    return f"{'unless' if guard.needed else 'where'} {guard.text}"


def _save(path: Path, found: list[Outcome], tree: Tree) -> None:
    made = [
        {
            "file": o.guard.file, "line": o.guard.line, "function": o.guard.function, "guard": o.guard.key,
            "needed": o.guard.needed, "status": o.status, "by": o.by, "how": o.how, "tests": o.tests,
            "source": tree.digest(o.guard.file),
        }
        for o in found
    ]  # fmt: skip
    part = path.with_suffix(".part")
    part.write_text(json.dumps(made, indent=1))
    part.rename(path)


def _saved(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(entry["file"], entry["guard"]): entry for entry in json.loads(path.read_text())}


def _kept(before: Mapping[tuple[str, str], dict[str, Any]], guard: Guard, tree: Tree) -> Outcome | None:
    """The earlier outcome if it was a kill and the file is unchanged, else None."""
    entry = before.get((guard.file, guard.key))
    if entry is None or entry["status"] not in ("killed", "timeout") or entry["source"] != tree.digest(guard.file):
        return None
    return Outcome(guard, entry["status"], entry["by"], entry["how"], entry["tests"])


if __name__ == "__main__":
    typer.run(main)
