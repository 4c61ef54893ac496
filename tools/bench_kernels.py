"""Modelled time of the kernels on FLUX.2-klein-4B's shapes, compared with the roofline and with other kernels.

    python tools/bench_kernels.py [--device trn2] [--short] [--check] [--nkilib CHECKOUT] [--nkilib-version 2.29]

All times are modelled: the emulator prices every instruction from published figures, and no hardware is used. It computes no
numbers, so the result is always the same. The cost of a launch is not included.

Columns:
  us        modelled time of the builtin kernel
  peaks     time at the device's peaks: all floating-point operations at the Tensor engines' peak, or all operands and results
            once at the cores' share of HBM, whichever is longer; `of peaks` is the share of that reached
  busiest   the busiest engine; `tensor` is the share of the time in which the Tensor engine is busy
  nkilib    AWS's kernel under the same emulator, without the copies that its layouts need, on the number of cores that makes
            it fastest
  other     for attention, the loop of the first experiments (`baselines/flash_unnormalised.py`, which overflows for large
            scores); for norm_rope_attention, two rope kernels and one attention kernel, without the norms

`kernels/emulator/specs.py` has the clocks, HBM share and DMA rates with their sources.

Exit code: 0; 1 with --check when a goal is missed; 2 for a bad argument.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from fluxrewrite.kernels.emulator.timeline import Engine
from fluxrewrite.kernels.harness.call_cost import ModelledCall, model_call
from fluxrewrite.kernels.harness.sample_inputs import arguments, complete
from fluxrewrite.kernels.toolchain import Profiler

from fluxrewrite.errors import InputError
from fluxrewrite.kernel import load_plugins
from fluxrewrite.provider.registry import load_provider

HEAD, HIDDEN, TEXT = 128, 3072, 512
SEQUENCES = (
    (768, 24),
    (768, 6),
    (4608, 6),
    (4608, 24),
)  # 512 text and 256 or 4096 image tokens; heads in all, of a rank
PROJECTIONS = ((768, 3072), (768, 768), (256, 3072), (256, 768), (512, 3072), (512, 768))
LOOP = "baselines.flash_unnormalised:flash_unnormalised"
TENSOR_BUSY, FUSED, LONG = 0.7, 0.8, 4608  # the goals


@dataclass(frozen=True)
class Row:
    """One call on one or two cores; `other_us` and `nkilib_us` are None when there is nothing to compare with."""

    kernel: str
    shape: str
    call: ModelledCall
    other_us: float | None
    nkilib_us: float | None
    note: str

    @property
    def name(self) -> str:
        cores = "1 core" if self.call.cores == 1 else f"{self.call.cores} cores"
        return f"{self.kernel} {self.shape}, {cores}"


def calls(short: bool) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Yield kernel, shape in words, and sizes of every call."""
    chosen = [s for s in SEQUENCES if s[0] < LONG or not short]
    for kernel in ("rope", "attention", "norm_rope_attention"):
        for bounded in (0, 1) if kernel == "norm_rope_attention" else (0,):
            for length, heads in chosen:
                more = {"text": TEXT, "bounded": bounded} if kernel == "norm_rope_attention" else {}
                sizes = {"sequence": length, "heads": heads, "head_size": HEAD, **more}
                yield kernel + ", bounded" * bounded, f"S {length} heads {heads}", complete(kernel, sizes)
    for tokens, width in PROJECTIONS:
        yield "qkv", f"T {tokens} I 3x{width}", complete("qkv", {"sequence": tokens, "hidden": HIDDEN, "query": width})


def loop_us(sizes: dict[str, int], device: str, cores: int) -> float:
    """Modelled time of the loop of the first experiments."""
    profiler = Profiler(device, cores, trace=False)
    q, k, v, *_ = arguments("attention", sizes, torch.bfloat16)
    profiler.run(LOOP, q, k, v, HEAD**-0.5)
    return profiler.profiles[0].latency_us


def measure(short: bool, device: str, library: str | None, progress: Callable[[str], None]) -> list[Row]:
    """Return all rows; `library` is the nkilib provider, or None."""
    rows: list[Row] = []
    times: dict[tuple[str, str, int], float] = {}
    for kernel, shape, sizes in calls(short):
        name = kernel.partition(",")[0]
        for cores in (1,) if device == "trn1" else (1, 2):
            progress(f"{kernel} {shape} on {cores}")
            call = model_call(name, sizes, torch.bfloat16, device=device, cores=cores, trace=False)
            times[kernel, shape, cores] = call.latency_us
            other = None
            if name == "attention":
                other = loop_us(sizes, device, cores)
            elif name == "norm_rope_attention":
                other = 2 * times["rope", shape, cores] + times["attention", shape, cores]
            rows.append(Row(kernel, shape, call, other, *theirs(name, sizes, device, cores, library)))
    return rows


def theirs(name: str, sizes: dict[str, int], device: str, cores: int, library: str | None) -> tuple[float | None, str]:
    """Modelled time of nkilib's kernel, or the reason why there is no such time.

    If a kernel repeats all its work on the second core, the time on one core is used.
    """
    if library is None:
        return None, ""
    times = []
    for count in range(1, cores + 1):
        try:
            call = model_call(name, sizes, torch.bfloat16, provider=library, device=device, cores=count, trace=False)
        except InputError as error:
            return None, str(error)
        times.append(call.latency_us)
    return min(times), ""


def table(rows: list[Row], library: str | None) -> Iterator[str]:
    """The Markdown table."""
    yield f"| kernel | shape | cores | us | peaks | of peaks | busiest | tensor | {library or 'nkilib'} | other | vs other |"
    yield "|---|---|---:|---:|---:|---:|---|---:|---:|---:|---:|"
    for r in rows:
        busiest = max(Engine, key=r.call.busy)
        theirs = f"{r.nkilib_us:,.1f}" if r.nkilib_us is not None else "not given" if library is None else "none"
        other = ("", "") if r.other_us is None else (f"{r.other_us:,.1f}", f"{r.call.latency_us / r.other_us:.2f}")
        cells = [r.kernel, r.shape, str(r.call.cores), f"{r.call.latency_us:,.1f}", f"{r.call.roofline_us:,.1f}"]
        cells += [f"{r.call.roofline_us / r.call.latency_us:.0%}", f"{busiest.value} {r.call.busy(busiest):.0%}"]
        yield "| " + " | ".join([*cells, f"{r.call.busy(Engine.TENSOR):.0%}", theirs, *other]) + " |"


def goals(rows: list[Row]) -> Iterator[tuple[bool | None, str]]:
    """Whether each goal holds, None where nothing was compared, and the figure nearest to missing it."""
    long = [
        (r.call.busy(Engine.TENSOR), r) for r in rows if r.kernel == "attention" and r.call.sizes["sequence"] == LONG
    ]
    yield _goal(
        f"attention at S {LONG}: Tensor engine busy >= {TENSOR_BUSY:.0%}", [(-b, r) for b, r in long], -TENSOR_BUSY
    )
    for kernel in ("norm_rope_attention", "norm_rope_attention, bounded"):
        ratios = [(r.call.latency_us / r.other_us, r) for r in rows if r.kernel == kernel and r.other_us]
        yield _goal(f"{kernel} <= {FUSED} of rope + rope + attention", ratios, FUSED)
    ratios = [(r.call.latency_us / r.nkilib_us, r) for r in rows if r.nkilib_us]
    yield _goal("every builtin kernel <= nkilib's", ratios, 1.0)


def _goal(text: str, found: list[tuple[float, Row]], limit: float) -> tuple[bool | None, str]:
    if not found:
        return None, f"{text}: nothing to compare"
    worst, row = max(found, key=lambda f: f[0])
    missed = sum(value > limit for value, _ in found)
    outcome = f"in all {len(found)} calls" if not missed else f"not in {missed} of {len(found)} calls"
    return missed == 0, f"{text}: {outcome}; nearest or worst {abs(worst):.2f}, {row.name}"


@contextlib.contextmanager
def nkilib(path: Path | None, version: str) -> Iterator[str | None]:
    """Make the checkout importable and yield the provider's name; None without a checkout.

    Raises InputError when the checkout is unusable.
    """
    if path is None:
        yield None
        return
    if "nkilib" not in load_plugins("fluxrewrite.providers"):
        raise InputError("--nkilib: this fluxrewrite has no provider nkilib")
    folder = path / "src" / "nkilib_src"
    if not (folder / "nkilib").is_dir():
        raise InputError(f"--nkilib {path}: no src/nkilib_src/nkilib there; give a checkout of aws-neuron/nki-library")
    load_provider(f"nkilib@{version}")
    sys.path.insert(0, str(folder))
    try:
        yield f"nkilib@{version}"
    finally:
        sys.path.remove(str(folder))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Modelled kernel times on FLUX.2-klein-4B's shapes; no hardware is used."
    )
    parser.add_argument("--device", choices=("trn1", "trn2", "trn3"), default="trn2")
    parser.add_argument("--short", action="store_true", help=f"skip S = {LONG}")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")
    parser.add_argument("--nkilib", type=Path, help="checkout of aws-neuron/nki-library to compare with")
    parser.add_argument("--nkilib-version", default="2.29", help="SDK version of that checkout")
    options = parser.parse_args(argv)
    shown = sys.stderr.isatty()
    try:
        with nkilib(options.nkilib, options.nkilib_version) as library:
            rows = measure(
                options.short,
                options.device,
                library,
                lambda t: shown and print(f"\r\033[K{t}", end="", file=sys.stderr),
            )
    except InputError as error:
        print(f"bench_kernels: {error}", file=sys.stderr)
        return 2
    if shown:
        print("\r\033[K", end="", file=sys.stderr)
    print(f"bfloat16 on {options.device}; modelled by the emulator, no hardware was used; us, launches not counted\n")
    print("\n".join(table(rows, library)))
    print()
    for note in dict.fromkeys(r.note for r in rows if r.note):
        print(f"- none: {note}")
    verdicts = list(goals(rows))
    for holds, text in verdicts:
        print(f"- {'not tested' if holds is None else 'holds' if holds else 'MISSED'}: {text}")
    return 1 if options.check and any(holds is False for holds, _ in verdicts) else 0


if __name__ == "__main__":
    raise SystemExit(main())
