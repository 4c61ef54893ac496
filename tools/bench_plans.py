"""Time whole models under each policy, to check that the chosen plan is as fast as the best one.

    python tools/bench_plans.py [--models flux2,sd3] [--rounds 7] [--threads 2] [--clock wall|cpu] [--json FILE]

Needs the `diffusers` extra, no weights, and 5 GB of memory. The models are blocks of FLUX.2-klein-4B's, FLUX.1's and
SD3-medium's widths, and decoder layers of a Llama of 1 B parameters. They have random weights in float32 and run on Inductor's
CPU backend; every kernel call runs the body of its op (`provider="reference"`).

Variants: "vanilla" is `torch.compile` alone. The others are fluxrewrite with policy "none", "all", "all" with one kind of
kernel each, projections as one layer on joined weights, "auto" with the shipped profile of a CPU, and "measure".

All variants of a model are compiled, run once, and then run in turn for `--rounds` rounds; each round starts with another
variant. The table has medians with the smallest and the largest time. Ratios are medians of the ratios within a round, with the
noise from `measured_price.relative`. First calls share Inductor's cache, which is empty before each model, so a variant
reuses what an earlier one compiled. Variants that rewrite the same sites are marked as the same program.

On a machine that other programs use, `--clock cpu --threads 1` counts processor time instead. Use one thread then, because
threads that wait for each other consume processor time.

Goals: "auto" within 1.01 times vanilla and within 1.01 times the best fixed variant; "measure" within 1.01 times the best of
all. Exit code: 0 when no goal is missed by more than the noise, 1 when one is, 2 for a bad argument.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

import fluxrewrite
from fluxrewrite.dynamo.measured_price import relative

KINDS = ("qkv", "rope", "attention", "norm_rope_attention")
LIMIT = 1.01
Model = tuple[nn.Module, dict[str, Any]]


def flux2() -> Model:
    """One double and two single blocks of FLUX.2-klein-4B, with 256 image and 512 text tokens."""
    import diffusers

    model = diffusers.Flux2Transformer2DModel(
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=24,
        attention_head_dim=128,
        joint_attention_dim=7680,
        in_channels=128,
        guidance_embeds=False,
    )
    return model, {
        "hidden_states": torch.randn(1, 256, 128),
        "encoder_hidden_states": torch.randn(1, 512, 7680),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.randint(0, 16, (1, 256, 4)).float(),
        "txt_ids": torch.randint(0, 16, (1, 512, 4)).float(),
        "return_dict": False,
    }


def flux1() -> Model:
    """One double and one single block of FLUX.1, with 256 image and 256 text tokens."""
    import diffusers

    model = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    return model, {
        "hidden_states": torch.randn(1, 256, 64),
        "encoder_hidden_states": torch.randn(1, 256, 4096),
        "pooled_projections": torch.randn(1, 768),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": torch.randint(0, 16, (256, 3)).float(),
        "txt_ids": torch.randint(0, 16, (256, 3)).float(),
        "return_dict": False,
    }


def sd3() -> Model:
    """Two layers of SD3-medium, with 256 image and 154 text tokens."""
    import diffusers

    model = diffusers.SD3Transformer2DModel(
        sample_size=32,
        num_layers=2,
        num_attention_heads=24,
        attention_head_dim=64,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
    )
    return model, {
        "hidden_states": torch.randn(1, 16, 32, 32),
        "encoder_hidden_states": torch.randn(1, 154, 4096),
        "pooled_projections": torch.randn(1, 2048),
        "timestep": torch.tensor([500.0]),
        "return_dict": False,
    }


class RMSNorm(nn.Module):
    """RMSNorm spelled out, as in the models of transformers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


class Layer(nn.Module):
    """A decoder layer: grouped heads, RoPE on halves of a head, causal attention, gated MLP."""

    def __init__(self, size: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        head = size // heads
        self.heads, self.kv_heads, self.head = heads, kv_heads, head
        self.q, self.o = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
        self.k, self.v = (nn.Linear(size, kv_heads * head, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(size, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, size, bias=False)
        self.norm, self.mlp_norm = RMSNorm(size), RMSNorm(size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        y = self.norm(x)
        q = self.q(y).view(batch, tokens, self.heads, self.head).transpose(1, 2)
        k, v = (p(y).view(batch, tokens, self.kv_heads, self.head).transpose(1, 2) for p in (self.k, self.v))
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(attended.transpose(1, 2).reshape(batch, tokens, -1))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Decoder(nn.Module):
    def __init__(self, layers: int, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(*sizes) for _ in range(layers))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor]:
        for layer in self.layers:
            x = layer(x, cos, sin)
        return (x,)


def llama() -> Model:
    """Two layers of Llama-3.2-1B, with 256 tokens."""
    angles = torch.outer(torch.arange(256.0), 500_000.0 ** (-torch.arange(0, 64, 2) / 64)).repeat(1, 2)
    return Decoder(2, 2048, 32, 8, 8192), {"x": torch.randn(1, 256, 2048), "cos": angles.cos(), "sin": angles.sin()}


MODELS: dict[str, Callable[[], Model]] = {"flux2": flux2, "flux1": flux1, "sd3": sd3, "llama": llama}


@dataclass
class Variant:
    """A compiled model: the seconds of its first call and of each round, and the rewritten sites."""

    name: str
    run: Callable[[], Any]
    compile_s: float
    taken: tuple[str, ...]
    choices: tuple[str, ...] = ()
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def compared_with(self, other: Variant) -> tuple[float, float]:
        """Ratio to another variant, and its noise."""
        return relative(self.seconds, other.seconds)


def variants(model: nn.Module, inputs: dict[str, Any], cache: str) -> Iterator[Variant]:
    """Compile the model for every variant."""
    ways: list[tuple[str, dict[str, Any] | None]] = [("vanilla", None), ("none", {"policy": "none"}), ("all", {})]
    ways += [(f"{kind} alone", {"kernels": kind}) for kind in KINDS]
    ways += [("qkv inline", {"kernels": "qkv", "policy": lambda site: "inline"})]
    ways += [("auto", {"policy": "auto"}), ("measure", {"policy": "measure", "cache_dir": cache})]
    expected = model(**inputs)[0]
    for name, options in ways:
        backend = None
        if options is not None:
            options = {"provider": "reference", "inner": "inductor", "strict": True, "device": "cpu", **options}
            backend = fluxrewrite.backend(**options)
        compiled = torch.compile(model, backend=backend or "inductor")
        start = time.perf_counter()
        found = compiled(**inputs)[0]
        compile_s = time.perf_counter() - start
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        reports = backend.reports if backend else []
        taken = tuple(f"{s.choice} {s.id}" for r in reports for s in r.sites if s.choice != "keep")
        chosen = tuple(f"{c.block}: {c.chosen}" for r in reports if r.effect for c in r.effect.choices)
        if not (taken or backend is None or name in ("none", "auto", "measure")):
            continue  # this model has no site of this kind
        yield Variant(name, lambda compiled=compiled: compiled(**inputs), compile_s, taken, chosen)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(name: str, rounds: int, clock: Callable[[], float]) -> list[Variant]:
    """Time all variants of one model."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model.eval().requires_grad_(False)
    with torch.no_grad(), tempfile.TemporaryDirectory() as cache, fresh_cache():
        found = []
        for variant in variants(model, inputs, cache):
            print(f"{name}: {variant.name} compiled in {variant.compile_s:.1f} s", file=sys.stderr, flush=True)
            found.append(variant)
        for variant in found:
            variant.run()
        gc.collect()
        for number in range(rounds):
            for i in range(len(found)):
                variant = found[(i + number) % len(found)]
                start = clock()
                variant.run()
                variant.seconds.append(clock() - start)
    return found


@dataclass(frozen=True)
class Goal:
    """One variant compared with another: the ratio, its noise, and the verdict."""

    text: str
    ratio: float
    noise: float
    verdict: str


def goals(found: Sequence[Variant]) -> list[Goal]:
    """Check the goals of "auto" and "measure"."""
    named = {v.name: v for v in found}
    fixed = [v for v in found if v.name not in ("auto", "measure")]
    best = min(fixed, key=lambda v: v.median)
    pairs = [
        ("auto", named["vanilla"]),
        ("auto", best),
        ("measure", min([*fixed, named["auto"]], key=lambda v: v.median)),
    ]
    return [_goal(named[name], other) for name, other in pairs]


def _goal(variant: Variant, other: Variant) -> Goal:
    ratio, noise = variant.compared_with(other)
    if variant.taken == other.taken:
        verdict = "same program"
    elif ratio <= LIMIT:
        verdict = "met"
    else:
        verdict = "not met" if ratio - noise > LIMIT else "within the noise"
    return Goal(f"{variant.name} <= {LIMIT} x {other.name}", ratio, noise, verdict)


def table(name: str, found: Sequence[Variant]) -> str:
    """A Markdown table with one row per variant."""
    vanilla = found[0]
    lines = [
        f"| {name} | sites | ms, median (min - max) | / vanilla | first call, s | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for v in found:
        ratio, noise = v.compared_with(vanilla)
        spread = f"{v.median * 1e3:,.0f} ({min(v.seconds) * 1e3:,.0f} - {max(v.seconds) * 1e3:,.0f})"
        twin = next((o.name for o in found if o.taken == v.taken), v.name)
        note = f"same program as {twin}" if twin != v.name else ""
        lines.append(
            f"| {v.name} | {len(v.taken)} | {spread} | {ratio:.3f} +- {noise:.3f} | {v.compile_s:.1f} | {note} |"
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, 7 or more (default 7)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (default 2)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu counts processor time, for a shared machine"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options = parser.parse_args()
    options.models = options.models.split(",")
    unknown = set(options.models) - set(MODELS)
    if unknown:
        parser.error(f"--models: unknown {', '.join(sorted(unknown))}; known: {', '.join(MODELS)}")
    if options.rounds < 7 or options.threads < 1:
        parser.error("--rounds must be 7 or more, --threads 1 or more")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: no such folder")
    return options


def main() -> int:
    """Measure, print the tables, and check the goals."""
    options = _arguments()
    torch.set_num_threads(options.threads)
    torch._dynamo.config.recompile_limit = 64
    results, verdicts = [], []
    for name in options.models:
        found = measure(name, options.rounds, CLOCKS[options.clock])
        checks = goals(found)
        verdicts += [c.verdict for c in checks]
        print(f"\n{table(name, found)}\n")
        for variant in found:
            if variant.name in ("auto", "measure"):
                print(f"- {variant.name} takes {'; '.join(variant.choices)}")
        for c in checks:
            print(f"- {c.verdict}: {c.text} ({c.ratio:.3f} +- {c.noise:.3f})", flush=True)
        rows = [{k: v for k, v in vars(v).items() if k != "run"} for v in found]
        results.append({"model": name, "variants": rows, "goals": [asdict(c) for c in checks]})
        del found
        gc.collect()
    if options.json:
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": options.threads,
            "clock": options.clock,
        }
        options.json.write_text(json.dumps({"versions": versions, "models": results}, indent=1) + "\n")
    return int("not met" in verdicts)


if __name__ == "__main__":
    raise SystemExit(main())
