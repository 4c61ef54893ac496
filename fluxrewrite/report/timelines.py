"""What the engines of a device do in the kernel calls of a report, as the calls' providers model it; no hardware runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from ..cost.devices import Device, device_names, load_device
from ..errors import InputError
from ..provider.profile import Profiled, ProfiledEvent, ProfiledLaunch, ProfileRequest
from ..provider.registry import profile
from .model import CallInfo, EngineInfo, Report, SiteInfo, TimelineInfo

__all__ = ["SLICES", "distinct", "ranked", "with_timelines"]

SLICES = 96
"""Parts of a call's time, each with the percentage that an engine is busy: fine enough to show the phases of a call of 0.1 ms."""

_Group = tuple[CallInfo, list[SiteInfo]]


def distinct(report: Report) -> list[_Group]:
    """One call of each specialisation (kernel, provider, form, sizes, dtypes), and the sites of all calls that are equal to it."""
    sites = {s.id: s for s in report.sites}
    found: dict[str, _Group] = {}
    for call in report.calls:
        site = sites[call.site]
        operands = [(t.shape, t.dtype) for t in call.operands]
        kernel = site.kernel.model_dump() if site.kernel else None
        key = json.dumps([kernel, site.kind, site.form, site.shapes, operands], sort_keys=True)
        found.setdefault(key, (call, []))[1].append(site)
    return list(found.values())


def ranked(timelines: Iterable[TimelineInfo]) -> list[TimelineInfo]:
    """Timelines, those whose calls take longest in a step first; those that could not be modelled last."""
    return sorted(timelines, key=lambda t: -(t.latency_us or 0) * len(t.sites))


def with_timelines(
    report: Report, step: Callable[[str], None] = lambda text: None, device: Device | None = None
) -> Report:
    """The report with a timeline for each distinct kernel call. A call that its provider cannot model has a `problem` instead.

    Args:
        report: with predictions.
        step: called before each call with its name.
        device: the profile that the report was made with; by default the shipped one of that name. A report has only the name.

    Raises:
        InputError: a report without predictions, or on a device that is not shipped or not modelled.
    """
    if report.effect is None:
        raise InputError(
            f"the report on {report.model.name} has no predictions, so no device; write it again with fluxrewrite inspect"
        )
    device = device or _shipped(report.effect.device)
    device.emulated()
    made = []
    for call, sites in distinct(report):
        step(f"{sites[0].kind}:{sites[0].form}")
        made.append(_timeline(call, sites, device))
    return report.model_copy(update={"timelines": tuple(made)})


def _shipped(name: str) -> Device:
    if name not in device_names():
        raise InputError(
            f"no timelines of kernels on {name}: a report keeps the name of its device, not the profile; "
            "run fluxrewrite inspect --timelines with that --device FILE"
        )
    return load_device(name)


def _timeline(call: CallInfo, sites: Sequence[SiteInfo], device: Device) -> TimelineInfo:
    site = sites[0]
    provider = site.kernel.provider if site.kernel else "reference"
    made = TimelineInfo(
        kernel=site.kind,
        form=site.form,
        provider=provider,
        sites=tuple(s.id for s in sites),
        device=device.emulated(),
        cores=device.physical_cores,
        shapes=site.shapes,
    )
    try:
        found = profile(provider, _request(call, site, device))
    except InputError as error:
        return made.model_copy(update={"problem": str(error)})
    figures = {"latency_us": _rounded(found.latency_us), "roofline_us": _rounded(found.roofline_us)}
    return made.model_copy(update={**figures, "bound": found.bound, "engines": tuple(_engines(found))})


def _request(call: CallInfo, site: SiteInfo, device: Device) -> ProfileRequest:
    shapes = {**site.shapes, **{f"axis {i} of {t.name}": n for t in call.operands for i, n in enumerate(t.shape)}}
    symbolic = [f"{name} {size}" for name, size in shapes.items() if not isinstance(size, int)]
    if symbolic:
        raise InputError(f"{symbolic[0]}: a kernel is modelled for sizes that are numbers; inspect without --dynamic")
    operands = tuple((tuple(int(n) for n in t.shape), t.dtype) for t in call.operands)
    return ProfileRequest(
        kernel=site.kind,
        sizes={name: int(n) for name, n in site.shapes.items()},
        dtype=getattr(torch, call.operands[0].dtype),
        device=device.emulated(),
        cores=device.physical_cores,
        form=site.form,
        details=site.details,
        operands=operands,
    )


def _engines(found: Profiled) -> Iterator[EngineInfo]:
    """Each engine, mean of the cores, over all launches one after another."""
    cores, latency = found.cores, found.latency_us
    for name in dict.fromkeys(str(r.engine) for launch in found.profiles for r in launch.engines):
        rows = [r for launch in found.profiles for r in launch.engines if str(r.engine) == name]
        busy = sum(r.busy_us for r in rows) / (latency * cores) if latency else 0.0
        yield EngineInfo(
            engine=name,
            instructions=sum(r.instructions for r in rows),
            busy=float(f"{min(busy, 1.0):.4g}"),
            slices=_slices(found.profiles, name, latency * 1e3, busy),
        )


def _slices(launches: Iterable[ProfiledLaunch], engine: str, length_ns: float, busy: float) -> tuple[int, ...]:
    """Percent of each slice in which the engine is busy. Their mean is `busy`: events say when, the totals how much.

    Transfers share the bandwidth and tiled products the array, so that their events overlap; a transfer counts by its bytes.
    """
    width = length_ns / SLICES
    held = [0.0] * SLICES
    start = 0.0
    for launch in launches:
        for events in launch.events:
            for event in events:
                if str(event.engine) == engine:
                    _spread(event, start, width, held)
        start += launch.latency_us * 1e3
    total = sum(held)
    factor = 100 * busy * SLICES / total if total else 0.0
    return tuple(min(100, round(h * factor)) for h in held)


def _spread(event: ProfiledEvent, start: float, width: float, held: list[float]) -> None:
    """Add the time of an event, or its bytes where it moves some, to the slices that it lies in."""
    length = event.end - event.start
    if length <= 0:
        return
    weight = event.bytes / length if event.bytes else 1.0
    begin, end = start + event.start, start + event.end
    for i in range(int(begin / width), min(SLICES, int(end / width) + 1)):
        inside = min(end, (i + 1) * width) - max(begin, i * width)
        if inside > 0:
            held[i] += inside * weight


def _rounded(us: float) -> float:
    return float(f"{us:.6g}")
