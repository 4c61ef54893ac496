"""Limits on a report: figures by name, expressions such as "barriers > 10", and files of them."""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckFailed, InputError
from .model import Effect, KindSummary, Report

__all__ = ["BY_KIND", "METRICS", "BudgetLimit", "check", "metrics", "parse_limit", "read_budget"]

METRICS: Mapping[str, str] = {
    "boundaries": "all boundaries",
    "barriers": "kernel calls inside an executable",
    "splits": "boundaries that end an executable; graph breaks are among them",
    "layouts": "copies that only the kernels' layouts need",
    "graph_breaks": "graph breaks",
    "boundary_bytes": "bytes now through memory at boundaries",
    "boundary_us": "microseconds that boundaries cost a step",
    "lost_fusions": "pairs no longer fused because one is in a kernel call",
    "lost_elsewhere": "pairs no longer fused outside all calls",
    "extra_bytes": "traffic after less before, bytes",
    "extra_compiled": "compiled kernels and calls after less before",
    "collectives": "exchanges between ranks after",
    "step_us": "predicted step after, microseconds",
    "predicted_slowdown": "predicted step after / before, by runs of this very case where there are some",
    "executables": "executables after",
    "specialisations": "distinct kernel calls to compile",
    "compile_s": "seconds of a cold compile",
    "slower": "verdicts that say slower, of kinds that kernels take",
    "graphs": "graphs",
    "graph_nodes": "nodes of all graphs",
}
"""Figures of a whole report."""

BY_KIND: Mapping[str, str] = {
    "found": "sites found",
    "eligible": "sites that a kernel may take",
    "ineligible": "sites found that no kernel may take",
    "inline": "sites written as plain operations",
    "kernels": "sites that kernels take",
    "covered": "sites inside a larger one that a kernel takes",
    "missed": "near misses",
}
"""Figures of all kinds of site together, or of one: "missed" and "missed.qkv"."""

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}
_NUMBER = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
_EXPRESSION = re.compile(r"\s*([\w.]+)\s*(>=|<=|==|!=|>|<)\s*(\S(?:.*\S)?)\s*", re.DOTALL)


@dataclass(frozen=True)
class BudgetLimit:
    """A check fails where `metric` `compare` `value` holds; `source` says where the limit comes from, for messages."""

    metric: str
    compare: str
    value: float
    source: str

    def __str__(self) -> str:
        return f"{self.metric} {self.compare} {_plain(self.value)}"

    def broken(self, found: float) -> bool:
        """Whether this value fails."""
        return _OPERATORS[self.compare](found, self.value)


def parse_limit(text: str, source: str = "--fail-on", kinds: Iterable[str] | None = None) -> BudgetLimit:
    """Read "metric operator number": "barriers>10", "boundary_bytes >= 1.5 MB", "kernels.qkv < 30".

    Numbers take k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (of 1024) in any case, with or without a B.

    Args:
        text: the expression.
        source: where it comes from, for messages.
        kinds: the kinds of site that a metric may be narrowed to; any when None.

    Raises:
        InputError: not such an expression, or an unknown metric; the message lists the known ones.
    """
    parts = _EXPRESSION.fullmatch(text)
    if parts is None:
        raise InputError(f"{source} {text!r}: give a metric, one of > >= < <= == !=, and a number, as 'barriers>10'")
    metric, compare, number = parts.groups()
    _known(metric, source, kinds)
    return BudgetLimit(metric, compare, _number(number, source, text), source)


def _known(metric: str, source: str, kinds: Iterable[str] | None) -> None:
    name, dot, kind = metric.partition(".")
    if dot and name in BY_KIND:
        if kinds is not None and kind not in (known := tuple(kinds)):
            raise InputError(f"{source}: {metric!r}: no kind {kind!r} is looked for; there are {', '.join(known)}")
        return
    if metric not in METRICS and metric not in BY_KIND:
        raise InputError(
            f"{source}: unknown metric {metric!r}; known: {', '.join(METRICS)}, and of all kinds or one "
            f"(missed, missed.qkv): {', '.join(BY_KIND)}"
        )


def _number(text: str, source: str, whole: str) -> float:
    parts = _NUMBER.fullmatch(text)
    value = float("inf") if parts is None else float(parts[1]) * _UNITS.get((parts[2] or "").lower(), 1.0)
    if abs(value) == float("inf"):
        raise InputError(f"{source} {whole!r}: {text!r} is not a number; write 10, 1.02, 5k or 100MB")
    return value


def read_budget(path: Path, kinds: Iterable[str] | None = None) -> list[BudgetLimit]:
    """Limits of a TOML file: a table `limits` (metric = the most it may be) and a list `fail_on` of expressions.

    Raises InputError when the file cannot be read, is not TOML, or has anything else in it.
    """
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not TOML ({error})") from error
    known = None if kinds is None else tuple(kinds)
    limits, expressions = data.pop("limits", {}), data.pop("fail_on", [])
    if data:
        raise InputError(f"{path}: unknown {', '.join(map(repr, data))}; a budget has [limits] and fail_on")
    if not isinstance(limits, dict) or not isinstance(expressions, list):
        raise InputError(f"{path}: [limits] is a table, as barriers = 10, and fail_on a list of expressions")
    found = [_at_most(name, value, path, known) for name, value in _flat(limits)]
    for text in expressions:
        if not isinstance(text, str):
            raise InputError(f"{path}: fail_on holds {text!r}; it is a list of texts such as 'kernels.qkv < 30'")
        found.append(parse_limit(text, str(path), known))
    if not found:
        raise InputError(f"{path}: has no limit; write barriers = 10 under [limits], or fail_on = ['barriers > 10']")
    return found


def _flat(table: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """`missed.qkv = 0` is a table within the table to TOML."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{kind}", most) for kind, most in value.items())
        else:
            yield name, value


def _at_most(name: str, value: Any, path: Path, kinds: Sequence[str] | None) -> BudgetLimit:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise InputError(f"{path}: {name} = {value!r}: give the most it may be, as 10 or '100MB'")
    _known(name, str(path), kinds)
    return BudgetLimit(name, ">", _number(str(value), str(path), f"{name} = {value}"), str(path))


def metrics(report: Report) -> dict[str, float | None]:
    """All figures of a report by name; None for an unknown one."""
    counts = {kind: sum(b.kind == kind for b in report.boundaries) for kind in ("barrier", "split", "layout")}
    taken = {s.kind for s in report.sites if s.choice == "kernel"}
    return {
        "boundaries": len(report.boundaries),
        "barriers": counts["barrier"],
        "splits": counts["split"],
        "layouts": counts["layout"],
        "graph_breaks": len(report.model.graph_breaks),
        "boundary_bytes": sum(b.bytes for b in report.boundaries),
        "boundary_us": _total([b.cost_us for b in report.boundaries]),
        "lost_fusions": sum(len(b.lost_fusions) for b in report.boundaries),
        "slower": sum(v.verdict == "slower" and v.kernel in taken for v in report.verdicts),
        "graphs": report.model.graphs,
        "graph_nodes": report.model.graph_nodes,
        **_predicted(report),
        **_by_kind(report),
    }


def _total(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def _predicted(report: Report) -> dict[str, float | None]:
    e = report.effect
    if e is None:
        names = (
            "collectives",
            "lost_elsewhere",
            "extra_bytes",
            "extra_compiled",
            "step_us",
            "predicted_slowdown",
            "executables",
        )
        return dict.fromkeys((*names, "specialisations", "compile_s"))
    return {
        "collectives": e.collectives_after,
        "lost_elsewhere": e.lost_elsewhere,
        "extra_bytes": e.bytes_after - e.bytes_before,
        "extra_compiled": e.kernels_after - e.kernels_before,
        "step_us": e.step_after.us,
        "predicted_slowdown": _slowdown(e),
        "executables": e.compile.executables,
        "specialisations": e.compile.specialisations,
        "compile_s": e.compile.seconds,
    }


def _slowdown(effect: Effect) -> float | None:
    if effect.measured is not None:
        return effect.measured.ratio
    return effect.step_after.us / effect.step_before.us if effect.step_before.us else None


def _by_kind(report: Report) -> dict[str, float | None]:
    found: dict[str, float | None] = dict.fromkeys(BY_KIND, 0)
    for kind, summary in report.summary.kinds.items():
        for name, count in _counts(summary).items():
            found[f"{name}.{kind}"] = count
            found[name] = (found[name] or 0) + count
    return found


def _counts(s: KindSummary) -> dict[str, int]:
    return {
        "found": s.found,
        "eligible": s.eligible,
        "ineligible": s.found - s.eligible,
        "kernels": s.rewritten,
        "inline": s.inline,
        "covered": s.covered,
        "missed": s.missed,
    }


def check(report: Report, limits: Iterable[BudgetLimit]) -> None:
    """Compare a report with limits. An unknown figure breaks every limit on it.

    Raises:
        CheckFailed: a line for each limit that is broken, with the value found.
        InputError: a limit on a kind that was not looked for.
    """
    values = metrics(report)
    lines = []
    for limit in limits:
        if limit.metric not in values:
            _known(limit.metric, limit.source, report.summary.kinds)
        found = values[limit.metric]
        if found is None:
            lines.append(f"limit broken: {limit} ({limit.source}): not known for this model and target")
        elif limit.broken(found):
            lines.append(f"limit broken: {limit} ({limit.source}): found {_plain(found)}")
    if lines:
        raise CheckFailed(*lines)


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"
