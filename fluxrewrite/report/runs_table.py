"""The rows of a bench's table, for every format."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from ..cost.runs import ALIKE, BUSY, RESTLESS, Runs, Variant
from .model import Report

__all__ = ["COLUMNS", "WHERE_KNOWN", "as_csv", "as_markdown", "cells", "differences", "notes", "with_range"]

COLUMNS = {
    "variant": "",
    "calls": "kernel calls a step",
    "warm_runs": "runs after the first",
    "s_per_step": "seconds a step, median of all steps of the warm runs",
    "low_s": "fastest warm step",
    "high_s": "slowest warm step",
    "steps_per_s": "1 / s_per_step",
    "ratio": "s_per_step / vanilla's, in the runs taken next to it",
    "noise": "fraction of a step below which ratio is no difference",
    "cold_step_s": "first step of the first run, with the compile",
    "cold_growth": "cold_step_s / vanilla's, less 1",
    "peak_mb": "peak resident memory of the process, of the largest rank, 10^6 bytes",
    "sum_mb": "the same, the sum of all ranks",
    "device_mb": "peak memory allocated on the accelerator",
    "cosine": "last latents to vanilla's",
    "others": "share of the processors that other programs used in the worst warm run",
    "error": "",
}
"""Columns of the CSV, and what they hold."""


def cells(runs: Runs, variant: Variant) -> dict[str, str]:
    """Figures of a variant as text, by column; "" for what is not known."""
    warm, cold, output = variant.warm, variant.cold_first_step_s, variant.output
    middle = variant.warm_s_per_step
    cosine = output.cosine if output else None
    unlike = " !" if variant.differs else ""
    return {
        "variant": variant.name,
        "calls": str(sum(variant.calls.values())) if variant.runs else "",
        "warm_runs": str(len(variant.runs) - 1) if variant.runs else "",
        "s_per_step": _digits(middle),
        "low_s": _digits(min(warm, default=None)),
        "high_s": _digits(max(warm, default=None)),
        "steps_per_s": _digits(1 / middle if middle else None),
        "ratio": _format(runs.ratio(variant), ".3f"),
        "noise": _format(runs.noise(variant), ".1%") if variant.name != "vanilla" else "",
        "cold_step_s": _digits(cold),
        "cold_growth": _format(runs.growth(variant), "+.1%") if variant.name != "vanilla" else "",
        "peak_mb": _format(variant.peak_rss_mb, ".0f"),
        "sum_mb": _format(variant.peak_rss_sum_mb, ".0f"),
        "device_mb": _format(variant.peak_device_mb, ".0f"),
        "cosine": "not finite" + unlike if output and not output.finite else _format(cosine, ".6f") + unlike,
        "others": _format(variant.others, ".1%") if warm else "",
        "error": variant.error or "",
    }


def _digits(value: float | None) -> str:
    """Four of them, as many as a quiet machine repeats."""
    return _format(value, "#.4g")


def _format(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def notes(runs: Runs) -> Iterator[str]:
    """What to keep in mind about the figures."""
    if runs.vanilla is None and runs.variants:
        yield "Without the variant vanilla there are no ratios and no cosines."
    restless = [f"{v.name} {v.noise:.0%}" for v in runs.variants if v.noise > RESTLESS]
    if restless:
        yield (
            f"A warm step is known to no better than {RESTLESS:.0%} ({', '.join(restless)}). "
            "Measure on a quiet machine, or with more --runs."
        )
    disturbed = [f"{v.name} {v.others:.0%}" for v in runs.variants if v.others > BUSY]
    if disturbed:
        yield f"Other programs used the processors meanwhile ({', '.join(disturbed)}). Measure on a quiet machine."
    for variant in runs.variants:
        if variant.differs:
            yield f"! {variant.name}: the last latents are not vanilla's (cosine below {ALIKE}, or not finite)."
    untaken = [v.name for v in runs.variants if v.kernels and v.runs and not v.calls and not v.inline]
    if untaken:
        yield f"No kernel was called in {', '.join(untaken)}; fluxrewrite inspect {runs.setup.model} says why."


def as_csv(runs: Runs) -> str:
    """A row for each variant, with a header."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    for variant in runs.variants:
        row = cells(runs, variant)
        writer.writerow({**row, "cosine": row["cosine"].removesuffix(" !")})
    return file.getvalue()


_MARKDOWN = {
    "variant": "variant",
    "calls": "calls",
    "s_per_step": "s a step",
    "range": "min - max",
    "steps_per_s": "steps/s",
    "ratio": "ratio",
    "noise": "noise",
    "cold_step_s": "cold step, s",
    "cold_growth": "growth",
    "peak_mb": "peak MB",
    "sum_mb": "all ranks MB",
    "device_mb": "device MB",
    "cosine": "cosine",
}
WHERE_KNOWN = ("sum_mb", "device_mb")
"""Columns that are shown only where there is something in them."""


def as_markdown(runs: Runs) -> str:
    """A table, and the notes below it."""
    rows = [with_range(cells(runs, v)) for v in runs.variants]
    names = [n for n in _MARKDOWN if n not in WHERE_KNOWN or any(r[n] for r in rows)]
    lines = ["| " + " | ".join(_MARKDOWN[n] for n in names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    for row in rows:
        shown = {**row, "variant": f"{row['variant']}: {row['error']}" if row["error"] else row["variant"]}
        lines.append("| " + " | ".join(shown[n].replace("|", "\\|") for n in names) + " |")
    return "\n".join([*lines, *(f"\n{note}" for note in notes(runs))]) + "\n"


def with_range(row: dict[str, str]) -> dict[str, str]:
    """A row with a cell "range": the fastest and the slowest warm step."""
    return {**row, "range": f"{row['low_s']} - {row['high_s']}" if row["low_s"] else ""}


def differences(report: Report, runs: Runs) -> str:
    """In what the runs and the report differ, as "model flux2-klein-mini, not flux2-klein-4b"; "" for nothing."""
    m, case = report.model, runs.case
    pairs = {
        "model": (case.model, m.name),
        "dtype": (case.dtype, m.dtype),
        "tp": (case.tp, m.tp),
        "batch": (case.batch, m.batch),
        "image tokens": (case.image_tokens, m.image_tokens),
        "text tokens": (case.text_tokens, m.text_tokens),
    }
    return ", ".join(f"{what} {a}, not {b}" for what, (a, b) in pairs.items() if None not in (a, b) and a != b)
