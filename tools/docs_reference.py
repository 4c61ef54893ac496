"""Write the generated parts of docs/: tables between markers, and the whole of docs/cli.md.

    python tools/docs_reference.py [--check]

A table is placed between `<!-- generated: NAME -->` and `<!-- end -->`, where NAME is one of `TABLES`. Exit code: 0; 1 with
--check when a page is not up to date; 2 when a page names an unknown table.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from fluxrewrite import site
from fluxrewrite.cli import app
from fluxrewrite.cost import load_device, load_evidence
from fluxrewrite.cost.deltas import RUINOUS
from fluxrewrite.cost.devices import device_names
from fluxrewrite.fusion.rules import known_rules, load_rules
from fluxrewrite.kernel import load_kernels, load_plugins
from fluxrewrite.report import budget
from fluxrewrite.rewrite.selection import Selection

DOCS = Path(__file__).resolve().parents[1] / "docs"
_BLOCK = re.compile(r"<!-- generated: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)
_EXAMPLES = re.compile(r"\s*Examples?: (.*)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A Markdown table; columns named in `right` are right-aligned."""
    rule = ["---:" if name in right else "---" for name in head]
    lines = [head, rule, *([_cell(c) for c in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`"


def reason_codes() -> str:
    """Every `Code` with the docstring below it in fluxrewrite/site.py."""
    tree = ast.parse(inspect.getsource(site))
    (members,) = [n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Code"]
    texts = {}
    for item, below in itertools.pairwise(members):
        if isinstance(item, ast.Assign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            (target,) = item.targets
            texts[site.Code[getattr(target, "id", "")]] = str(below.value.value)
    return table(("code", "meaning"), ((_code(code.value), texts[code]) for code in site.Code))


def metrics() -> str:
    """The metrics of a whole report that `--fail-on` and budgets accept."""
    return table(("metric", "meaning"), ((_code(name), text) for name, text in budget.METRICS.items()))


def metrics_by_kind() -> str:
    """The metrics that they accept for sites, of all kinds together or of a single kind."""
    rows = ((_code(name), _code(f"{name}.qkv"), text) for name, text in budget.BY_KIND.items())
    return table(("all kinds", "one kind, e.g. qkv", "meaning"), rows)


def devices() -> str:
    """The figures of the shipped device profiles, each with its basis."""
    found = [load_device(name) for name in device_names()]
    figures = [d.figures for d in found]
    names = dict.fromkeys(name for f in figures for name in f)
    rows = []
    for name in names:
        unit = next(f[name].unit for f in figures if name in f)
        rows.append((f"{name}, {unit}", *(_figure(f[name]) if name in f else "" for f in figures)))
    return table(("a core", *(d.name for d in found)), rows)


def _figure(figure: Any) -> str:
    span = f" ({figure.low:g} to {figure.high:g})" if figure.low and figure.high else ""
    return f"{figure.value:g}{span}, {figure.basis}"


def evidence() -> str:
    """The shipped runs, each compared with the run without kernels from the same table."""
    rows = []
    for found in load_evidence().tables:
        base = found.baseline.warm_s_per_step
        for run in found.runs:
            ratio = run.warm_s_per_step / base
            change = "" if not run.kernels else f"{ratio - 1:+.1%}" if ratio < RUINOUS else f"{ratio:.1f} times"
            calls = ", ".join(f"{n} x {k}" for k, n in run.calls.items()) or "none"
            cold = f"{run.compile_s:.1f}" if run.compile_s else ""
            case = found.case
            place = f"{case.device}, {case.regime} ({found.stack.partition(',')[0]})"
            rows.append((place, calls, f"{run.warm_s_per_step:.3f}", change, cold))
    head = ("device, regime", "kernel calls a step", "s a step", "change", "first step, s")
    return table(head, rows, right=head[2:])


def rules() -> str:
    """The compilers whose fusion is described, with the source of each rule."""
    rows = []
    for name in known_rules():
        found = load_rules(name)
        rows += [(_code(name), _code(field), source) for field, source in found.evidence.items()]
    return table(("compiler", "rule", "where it comes from"), rows)


def kernels() -> str:
    """The kernels, the forms of site that they accept, and the limits of the op and of each provider."""
    return table(("kernel", "provider", "limits"), _kernel_rows())


def _kernel_rows() -> Iterator[tuple[str, str, str]]:
    passes = Selection.of(None).passes.values()
    for kernel in load_kernels().values():
        forms = ", ".join(f for p in passes if p.kernel == kernel.name for f in p.forms)
        yield f"`{kernel.name}` ({forms})", "the op itself", "; ".join(map(str, kernel.limits))
        for name, provider in load_plugins("fluxrewrite.providers").items():
            spans: dict[str, list[str]] = {}
            for version in provider.versions or ("",):
                offered = provider.implementations(version).get(kernel.name)
                if offered is not None:
                    text = "; ".join(map(str, offered.limits)) or "no further limit"
                    spans.setdefault(text, []).append(version)
            for text, versions in spans.items():
                span = versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
                yield "", f"{name} {span}".strip(), text


TABLES: dict[str, Callable[[], str]] = {
    "reason-codes": reason_codes,
    "metrics": metrics,
    "metrics-by-kind": metrics_by_kind,
    "devices": devices,
    "evidence": evidence,
    "rules": rules,
    "kernels": kernels,
}


def cli() -> str:
    """The command line page, generated from the commands."""
    root: Any = typer.main.get_command(app)
    parts = [
        "# Command line\n",
        f"{_prose(root.help)}\n",
        "Written by `make docs-reference` from the commands.\n",
    ]
    names = (f"[`fluxrewrite {path}`](#fluxrewrite-{path.replace(' ', '-')}): {_short(c)}"
             for path, c in _commands(root))  # fmt: skip
    parts.append("".join(f"- {line}\n" for line in names))
    parts += [_command(path, command) for path, command in _commands(root)]
    return "\n".join(parts)


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        path = f"{before}{name}"
        yield path, command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} ")


def _command(path: str, command: Any) -> str:
    context = typer.Context(command, info_name=f"fluxrewrite {path}")
    records = [(p.param_type_name, p.get_help_record(context)) for p in command.params]
    codes, examples = _epilog(command.epilog or "")
    parts = [f"## fluxrewrite {path}\n", f"{_prose(command.help)}\n"]
    if examples:
        parts.append("```sh\n" + "".join(f"{e}\n" for e in examples) + "```\n")
    for kind, title in (("argument", "argument"), ("option", "option")):
        rows = [(f"`{names}`", *_default(text)) for k, record in records if k == kind and record
                for names, text in [record]]  # fmt: skip
        if rows:
            parts.append(table((title, "what it means", "default"), rows))
    if codes:
        parts.append(f"{codes}\n")
    return "\n".join(parts)


def _short(command: Any) -> str:
    return str(command.short_help or command.help.splitlines()[0])


def _default(text: str) -> tuple[str, str]:
    """Split the help of a parameter from its default."""
    text, _, default = text.partition("  [default: ")
    text = text.replace("  [required]", " Required.")
    return text.replace("<", "&lt;"), f"`{default.removesuffix(']')}`" if default else ""


def _prose(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _epilog(text: str) -> tuple[str, list[str]]:
    """Split an epilog into the text on exit codes and the examples."""
    found = _EXAMPLES.search(text)
    if found is None:
        return text, []
    return text[: found.start()].strip(), [e.strip() for e in found[1].split("; ")]


def filled(text: str, page: str) -> str:
    """The page with up-to-date tables. Raises KeyError, naming the page, for an unknown table."""

    def fill(found: re.Match[str]) -> str:
        if found[1] not in TABLES:
            raise KeyError(f"{page}: no table {found[1]!r}; there are {', '.join(TABLES)}")
        return f"<!-- generated: {found[1]} -->\n\n{TABLES[found[1]]()}\n<!-- end -->"

    return _BLOCK.sub(fill, text)


def pages(folder: Path = DOCS) -> dict[Path, str]:
    """The wanted text of every page that has tables, and of the command line page."""
    found = {p: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.md")) if p.name != "cli.md"}
    return {p: filled(t, p.name) for p, t in found.items() if _BLOCK.search(t)} | {folder / "cli.md": cli()}


def main() -> int:
    """Write the pages, or list those that are not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a page is not up to date")
    check = parser.parse_args().check
    try:
        wanted = pages()
    except KeyError as error:
        sys.stderr.write(f"{error.args[0]}\n")
        return 2
    stale = [p for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    for path in stale:
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
        print(f"{'not up to date' if check else 'written'}: {path.relative_to(DOCS.parent)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
