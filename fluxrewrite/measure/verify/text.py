"""The result of a verification as text for a terminal of 80 columns: blocks that are alike share a row, the verdict is last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...report.format import folded
from .records import Moments, SiteResult, StepResult, Verification

__all__ = ["rendered"]


def rendered(found: Verification) -> Group:
    """The record as a renderable of rich."""
    return Group(*_parts(found))


def _parts(found: Verification) -> Iterable[RenderableType]:
    yield from _head(found)
    worst = ", worst rank" if found.setting.tp > 1 else ""
    yield Text(f"\nSites: original operations and their replacements, in the first step{worst}", style="bold")
    yield _sites(found.sites)
    yield from _limits(found.sites)
    for site in (s for s in found.sites if not s.passed):
        yield Text(f"FAILED {site.name}{': ' if site.note else ''}{site.note}", style="red")
    yield Text("\nDenoising loop: latents after each step, original and rewritten model", style="bold")
    yield _steps(found.loop.steps)
    for step in (s for s in found.loop.steps if not s.passed):
        yield Text(f"FAILED step {step.step}{': ' if step.note else ''}{step.note}", style="red")
    if found.loop.note:
        yield Text(f"FAILED {found.loop.note}", style="red")
    good = sum(s.passed for s in found.sites), sum(s.passed for s in found.loop.steps)
    yield Text(
        f"\n{good[0]} of {len(found.sites)} sites and {good[1]} of {found.setting.steps} steps within their limits, "
        f"{found.seconds:.0f} s",
        style="bold" if found.passed else "bold red",
    )


def _head(found: Verification) -> Iterable[RenderableType]:
    s = found.setting
    sizes = f", batch {s.batch}, {s.image_tokens} image + {s.text_tokens} text tokens" if s.batch else ""
    ranks = f", tp {s.tp}" if s.tp > 1 else ""
    yield Text.assemble((s.model, "bold"), f": {s.dtype}{sizes}{ranks}")
    yield Text(f"kernels {','.join(s.kernels)}")
    yield Text(f"policy {s.policy}; provider {s.provider}, execution {s.execution}; loop by {s.inner}; seed {s.seed}")


def _sites(sites: Sequence[SiteResult]) -> Table:
    """Sites that differ only in block numbers share a row, which has the worst figure of each column."""
    rows: dict[tuple[str, str, str, str], list[SiteResult]] = {}
    for s in sites:
        what = f"{'inline ' if s.choice == 'inline' else ''}{s.kind}:{s.form}"
        rows.setdefault((what, folded(s.path) or "model", str(s.shapes.get("sequence", "")), s.dtype), []).append(s)
    table = _grid(("count", "site", "max abs", "relative", "norm", "cosine"), left=("site",))
    for (what, path, sequence, _), group in rows.items():
        known = [s for s in group if s.cosine is not None]
        figures = [f"{_most(known, name):.1e}" if known else "-" for name in ("max_abs", "relative", "norm")]
        cosine = f"{min(s.cosine or 0.0 for s in known):.7f}" if known else "-"
        place = f"{what}{f' of {sequence}' if sequence else ''}\n  {path}"
        table.add_row(str(len(group)), place, *figures, cosine, style=_style(group))
    return table


def _limits(sites: Sequence[SiteResult]) -> Iterable[RenderableType]:
    for dtype, relative, norm, cosine in dict.fromkeys(
        (s.dtype, s.tolerance, s.norm_tolerance, s.least_cosine) for s in sites
    ):
        text = f"limits, {dtype}: {relative:.3g} of the largest value, {norm:.3g} of the norm, cosine {cosine:g}"
        yield Text(text, style="dim")


def _most(sites: Sequence[SiteResult], name: str) -> float:
    return float(max(getattr(s, name) for s in sites))


def _style(results: Sequence[SiteResult] | Sequence[StepResult]) -> str:
    return "" if all(r.passed for r in results) else "red"


def _steps(steps: Sequence[StepResult]) -> Table:
    table = _grid(("step", "model", "min", "max", "mean", "std", "max abs", "cosine"), left=("model",))
    for s in steps:
        error_cells = ("-", "-") if s.cosine is None or s.max_abs is None else (f"{s.max_abs:.1e}", f"{s.cosine:.7f}")
        table.add_row(str(s.step), "original", *_moments(s.original))
        table.add_row("", "rewritten", *_moments(s.rewritten), *error_cells, style=_style([s]))
    return table


def _moments(m: Moments) -> tuple[str, ...]:
    return tuple("-" if value is None else f"{value:.4f}" for value in (m.min, m.max, m.mean, m.std))


def _grid(names: Sequence[str], left: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=name != "site")
    return table
