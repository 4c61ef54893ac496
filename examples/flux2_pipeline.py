"""A FLUX.2 pipeline whose transformer is compiled with fluxrewrite, compared with the same pipeline without. Works offline.

    python examples/flux2_pipeline.py                                   # a small transformer, seconds
    python examples/flux2_pipeline.py --preset flux2-klein-mini         # real widths, 3 blocks
    python examples/flux2_pipeline.py --folder /path/to/FLUX.2-klein    # real weights, a local diffusers folder

The prompt is random numbers in the place of the text encoder's, and the latents are not decoded, so neither text encoder nor
VAE weights are needed. With transformers installed diffusers' own `Flux2KleinPipeline` runs, else its denoising loop alone.
Exit codes: 0 the two runs agree (cosine of the latents 0.9999), 1 they do not, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import diffusers
import torch
from diffusers.utils import is_transformers_available

import fluxrewrite
from fluxrewrite.errors import FluxrewriteError, InputError
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.registry import PRESETS
from fluxrewrite.models.workload import Workload, realise

SMALL = Path(__file__).parent / "small"
PATCH = 16  # pixels of an image token along each side: the VAE makes one of 8, the transformer takes two
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Run = list[tuple[float, torch.Tensor]]
"""Seconds of each step, and the latents after it."""


def pipeline(workload: Workload, folder: Path | None) -> Any:
    """Diffusers' pipeline around the transformer. Its VAE is a dummy, of which only two statistics are read."""
    channels = workload.model.config.in_channels // 4
    vae = diffusers.AutoencoderKLFlux2(block_out_channels=(8,) * 4, norm_num_groups=8, latent_channels=channels)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    if folder is not None and (folder / "scheduler").is_dir():
        scheduler = type(scheduler).from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    pipe = diffusers.Flux2KleinPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=workload.model,
        is_distilled=True,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_pipeline(pipe: Any, workload: Workload, args: argparse.Namespace) -> Run:
    """One call of the pipeline; the noise is that of the seed."""
    run: Run = []
    start = perf_counter()

    def after(pipe: Any, step: int, time: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal start
        now = perf_counter()
        run.append((now - start, tensors["latents"]))
        start = now
        return tensors

    pipe(
        prompt_embeds=workload.inputs["encoder_hidden_states"],
        height=args.pixels,
        width=args.pixels,
        num_inference_steps=args.steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(args.seed),
        output_type="latent",
        callback_on_step_end=after,
    )
    return run


def with_loop(workload: Workload, args: argparse.Namespace) -> Run:
    """The denoising loop without the pipeline around it."""
    run: Run = []
    start = perf_counter()
    for latents in workload.steps(args.steps):
        now = perf_counter()
        run.append((now - start, latents))
        start = now
    return run


def rewritten(reports: list[fluxrewrite.Report]) -> str:
    """What the kernels took, in one line: "4 qkv, 4 norm_rope_attention"."""
    taken = Counter(s.kind for report in reports for s in report.sites if s.choice != "keep")
    return ", ".join(f"{count} {kind}" for kind, count in taken.items()) or "nothing"


def compare(before: Run, after: Run) -> float:
    """Print both runs step by step; the least cosine."""
    print("step  uncompiled, s  compiled, s     cosine")
    cosines = []
    for number, ((slow, expected), (fast, found)) in enumerate(zip(before, after, strict=True), 1):
        cosines.append(float(torch.cosine_similarity(found.double().flatten(), expected.double().flatten(), dim=0)))
        print(f"{number:4}  {slow:13.3f}  {fast:11.3f}  {cosines[-1]:9.7f}")
    return min(cosines)


def main() -> int:
    """Run the loop twice, compile the transformer between the two. 1 where the results differ, 2 for bad input."""
    args = arguments()
    folder = args.folder
    name = str(folder or (SMALL if args.preset == "small" else args.preset))
    tokens = (args.pixels // PATCH) ** 2
    workload = realise(find_model(name), Shapes(tokens, args.text_tokens), DTYPES[args.dtype], args.seed)
    run: Callable[[], Run] = lambda: with_loop(workload, args)  # noqa: E731
    if args.loop or not is_transformers_available():
        why = "" if args.loop else "; diffusers' pipeline needs transformers, which is not installed"
        print(f"{name}, {args.dtype}: the denoising loop alone{why}")
    else:
        pipe = pipeline(workload, folder)
        run = lambda: with_pipeline(pipe, workload, args)  # noqa: E731
        print(f"{name}, {args.dtype}: {type(pipe).__name__}")
    before = run()
    reports: list[fluxrewrite.Report] = []
    workload.model.compile(
        backend=fluxrewrite.backend(args.inner, args.kernels, report=reports.append, strict=True), dynamic=False
    )
    run()  # compiles
    after = run()
    print(f"{tokens} image + {args.text_tokens} text tokens; rewritten: {rewritten(reports)}")
    return 0 if compare(before, after) >= 0.9999 else 1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group()
    flux2 = [name for name in PRESETS if name.startswith("flux2")]
    model.add_argument("--preset", default="small", choices=["small", *flux2], help="random weights; default: small")
    model.add_argument("--folder", type=Path, help="a local diffusers folder, of a pipeline or of its transformer")
    parser.add_argument("--kernels", help="as fluxrewrite.backend takes them; default: all")
    parser.add_argument("--inner", default="inductor", help="what compiles the rewritten graph; default: inductor")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=128, help=f"height and width, a multiple of {PATCH}")
    parser.add_argument("--text-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument("--seed", type=int, default=0, help="of prompt, noise and random weights")
    parser.add_argument("--loop", action="store_true", help="without diffusers' pipeline, even where it can be had")
    args = parser.parse_args()
    if args.pixels < PATCH or args.pixels % PATCH:
        raise InputError(f"--pixels {args.pixels}: must be a multiple of {PATCH}")
    if args.steps < 1:
        raise InputError(f"--steps {args.steps}: must be 1 or more")
    return args


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FluxrewriteError as error:
        sys.stderr.write(f"{Path(__file__).name}: {error}\n")
        sys.exit(2)
