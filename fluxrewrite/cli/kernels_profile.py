"""`fluxrewrite kernels profile`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .common import Dtype, progress, show, torch_dtype, writable, write

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..provider.profile import Profiled, ProfiledLaunch

__all__ = ["profile"]


def profile(
    name: Annotated[str, typer.Argument(help="Kernel: rope, qkv, attention or norm_rope_attention.")],
    shape: Annotated[str | None, typer.Option(help="Sizes that differ from the defaults, such as heads=6,sequence=4608; an unknown "
                                                   "name lists the known ones.")] = None,
    device: Annotated[str, typer.Option(help="Device to model: trn1, trn2, trn3, or a profile (*.json) whose emulated_as is one of "
                                        "them.")] = "trn2",
    dtype: Annotated[Dtype, typer.Option(help="Dtype of weights and activations.")] = Dtype.BF16,
    cores: Annotated[int, typer.Option(help="Number of physical cores in a logical core: 1 or 2.")] = 1,
    provider: Annotated[str, typer.Option(help="Provider of the kernel, as for inspect.")] = "builtin",
    trace: Annotated[Path | None, typer.Option(help="Write the timeline to this file: a Chrome trace (JSON) for Perfetto.")] = None,
    top: Annotated[int, typer.Option(help="Number of instructions to show, busiest first.")] = 5,
) -> None:  # fmt: skip
    """Model what one call of kernel NAME costs.

    An emulator derives the cost from published figures of the device; no hardware is used.
    """
    from ..cost.devices import load_device
    from ..provider.profile import ProfileRequest, parse_sizes
    from ..provider.registry import profile as profile_call

    if cores not in (1, 2):
        raise InputError(f"--cores {cores}: must be 1 or 2, the physical cores of a logical one")
    if top < 0:
        raise InputError(f"--top {top}: must be 0 or more")
    request = ProfileRequest(
        kernel=name,
        sizes=parse_sizes(shape),
        dtype=torch_dtype(dtype),
        device=load_device(device).emulated(),
        cores=cores,
    )
    writable(trace)
    with progress(f"modelling {name}"):
        call = profile_call(provider, request)
    if trace is not None:
        write(json.dumps(_joined(call)), trace)
    from rich.console import Group

    show(Group(*_parts(call, top, trace)))


def _joined(call: Profiled) -> dict[str, Any]:
    """The timelines of all launches as one Chrome trace, one after the other."""
    first, *others = [p.chrome_trace() for p in call.profiles]
    start = call.profiles[0].latency_us
    for profile, timeline in zip(call.profiles[1:], others, strict=True):
        moved = [{**e, "ts": e["ts"] + start} for e in timeline["traceEvents"] if "ts" in e]
        first["traceEvents"].extend(moved)
        start += profile.latency_us
    return first


def _parts(call: Profiled, top: int, trace: Path | None) -> Iterator[RenderableType]:
    from rich.text import Text

    cores = "1 core" if call.cores == 1 else f"{call.cores} cores"
    dtype = str(call.dtype).removeprefix("torch.")
    yield Text.assemble((call.kernel, "bold"), f" of {call.provider} on {call.device}, {cores}, {dtype}")
    yield Text(" ".join(f"{k}={v}" for k, v in call.sizes.items()))
    yield Text("Modelled by the emulator from published figures; no hardware was used.\n", style="yellow")
    yield Text(
        f"Modelled latency {call.latency_us:,.1f} us without the launch; at the device's peaks {call.roofline_us:,.1f} us"
    )
    yield Text(f"Bound by {call.bound}")
    tflops, gbs = call.flops / call.latency_us / 1e6, call.traffic / call.latency_us / 1e3
    yield Text(
        f"{tflops:.3g} TFLOP/s of {call.peak_tflops:.1f} ({tflops / call.peak_tflops:.0%}); operands and results "
        f"at {gbs:.0f} GB/s of {call.peak_gbs:.0f} ({gbs / call.peak_gbs:.0%})"
    )
    for number, profile in enumerate(call.profiles, 1):
        if len(call.profiles) > 1:
            yield Text(f"\nLaunch {number} of {len(call.profiles)}: {profile.latency_us:,.1f} us", style="bold")
        yield from _tables(profile, top)
    if trace is not None:
        yield Text(f"\nTimeline in {trace}: open it at ui.perfetto.dev")


def _tables(profile: ProfiledLaunch, top: int) -> Iterator[RenderableType]:
    """Tables of engines, memory and busiest instructions of one launch."""
    from rich.text import Text

    engines = _table(("core", "engine", "instr.", "cycles", "busy us", "busy", "MB", "GMAC"))
    for r in profile.engines:
        cells = (
            str(r.core), str(r.engine), str(r.instructions), f"{r.cycles:,.0f}", f"{r.busy_us:,.1f}",
            f"{r.utilisation:.0%}", f"{r.bytes / 1e6:.2f}", f"{r.macs / 1e9:.2f}",
        )  # fmt: skip
        engines.add_row(*cells)
    yield Text()
    yield engines
    peaks = (f"{m.memory} {m.peak / 1024:.1f} of {m.capacity / 1024:.0f}" for m in profile.memory)
    yield Text(f"\nPeak memory in KiB per partition, by core: {', '.join(peaks)}\n")
    if top:
        busiest = _table(("core", "engine", "instruction", "count", "us"), left=3)
        for i in profile.instructions()[:top]:
            busiest.add_row(str(i.core), str(i.engine), i.name, str(i.count), f"{i.busy_us:,.1f}")
        yield busiest
        yield Text("us: sum of the times from start to end; DMA transfers overlap", style="dim")


def _table(names: Sequence[str], left: int = 2) -> Any:
    """A table whose columns after the first `left` are numbers, aligned to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i < left else "right", no_wrap=True)
    return table
