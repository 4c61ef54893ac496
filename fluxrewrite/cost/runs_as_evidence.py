"""Turns the runs of a bench into evidence."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from ..errors import InputError
from .evidence import EVIDENCE_SCHEMA, Evidence, MeasuredRun, Table, kind_of
from .runs import Runs, Variant

__all__ = ["evidence_of"]


def evidence_of(runs: Runs, source: str) -> Evidence:
    """The variants of a bench as a table of runs with and without kernels. `source` names the origin, such as the file.

    A kernel is named with its form where a step called one form of it only, else by its kind. Some variants are left out, and the
    table's note lists them: "eager", variants without a warm run, those that computed something else than vanilla, those with
    sites written inline, and those with the same kernels as an earlier variant, such as "auto".

    Raises:
        InputError: no warm run of "vanilla" to compare with.
    """
    if runs.vanilla is None or not runs.vanilla.warm:
        raise InputError(
            f"{source}: no warm run of the variant 'vanilla' to compare with; run fluxrewrite bench with it and --runs 2 or more"
        )
    found: dict[frozenset[str], str] = {}
    kept, left_out = [], []
    for variant in (runs.vanilla, *(v for v in runs.variants if v is not runs.vanilla)):
        calls = _by_kind(variant.calls)
        why = _unfit(variant) or _there(found.get(frozenset(calls)))
        if why:
            left_out.append(f"{variant.name} left out: {why}")
            continue
        found[frozenset(calls)] = variant.name
        kept.append(_run(variant, calls, runs.vanilla.warm, runs.base(variant)))
    table = Table(
        case=runs.case,
        stack=f"{runs.setup.inner}, torch {runs.versions.torch}",
        source=f"{source}: fluxrewrite bench, {runs.date}, {runs.machine.device or runs.machine.processor}",
        steps=runs.setup.steps,
        drift=float(f"{runs.drift:.3g}"),
        note="; ".join((f"{runs.setup.runs} runs, the first cold", *left_out)),
        runs=tuple(kept),
    )
    return Evidence(schema=EVIDENCE_SCHEMA, tables=(table,))


def _unfit(variant: Variant) -> str:
    """Why nothing about the cost of calls follows from a variant; "" if something does."""
    if variant.name == "eager":
        return "runs without the compiler"
    if not variant.warm:
        return "no warm run"
    if variant.differs:
        return "other latents than vanilla's"
    return f"{variant.inline} sites written inline" if variant.inline else ""


def _there(name: str | None) -> str:
    return "" if name is None else f"the same kernels as {name}"


def _run(variant: Variant, calls: dict[str, int], vanilla: Sequence[float], base: Sequence[float]) -> MeasuredRun:
    """The variant as a run of the table, which has a single run of vanilla.

    A variant with runs of vanilla of its own (`base`) is scaled to the speed at which the machine ran the table's vanilla.
    """
    scale = statistics.median(vanilla) / statistics.median(base)
    return MeasuredRun(
        kernels=tuple(calls),
        calls=calls,
        specialisations=_by_kind(variant.specialisations),
        warm_s_per_step=statistics.median(variant.warm) * scale,
        warm_steps_s=tuple(s * scale for s in variant.warm),
        beside_steps_s=tuple(s * scale for s in base) if variant.beside else (),
        cold_steps_s=variant.runs[0].steps_s,
        note=variant.name,
    )


def _by_kind(counts: dict[str, int]) -> dict[str, int]:
    """{"qkv": 4} from {"qkv:packed": 2, "qkv:triple": 2}: evidence names each kind once."""
    forms = Counter(map(kind_of, counts))
    added: Counter[str] = Counter()
    for name, count in counts.items():
        added[name if forms[kind_of(name)] == 1 else kind_of(name)] += count
    return dict(sorted(added.items()))
