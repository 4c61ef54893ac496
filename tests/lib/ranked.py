"""Functions run by several processes at once, and the small models that they share."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fluxrewrite
from fluxrewrite import parallel
from fluxrewrite.dynamo.rewriter import Rewriter

SMALL = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "in_channels": 8,
    "guidance_embeds": False,
    "axes_dims_rope": (4, 4, 4, 4),
}
SMALL1 = {
    **{k: v for k, v in SMALL.items() if k not in ("axes_dims_rope",)},
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}
SENT = "gloo:"
"""What the profiler calls the operations of the transport."""


def flux2(seed: int = 0) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A FLUX.2 transformer of 1 + 1 blocks of 4 heads, the same on every rank."""
    import diffusers

    torch.manual_seed(seed)
    model = diffusers.Flux2Transformer2DModel(**SMALL).eval().requires_grad_(False)
    inputs = {
        "hidden_states": torch.randn(1, 12, 8),
        "encoder_hidden_states": torch.randn(1, 6, 32),
        "timestep": torch.full((1,), 0.5),
        "img_ids": torch.randint(0, 9, (1, 12, 4)).float(),
        "txt_ids": torch.randint(0, 9, (1, 6, 4)).float(),
        "return_dict": False,
    }
    return model, inputs


def flux1(seed: int = 0) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A FLUX.1 transformer of 1 + 1 blocks with biases, those of divided rows among them."""
    import diffusers

    torch.manual_seed(seed)
    model = diffusers.FluxTransformer2DModel(**SMALL1).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    inputs = {
        "hidden_states": torch.randn(1, 12, 8),
        "encoder_hidden_states": torch.randn(1, 6, 32),
        "pooled_projections": torch.randn(1, 16),
        "timestep": torch.full((1,), 0.5),
        "img_ids": torch.randint(0, 9, (12, 3)).float(),
        "txt_ids": torch.randint(0, 9, (6, 3)).float(),
        "return_dict": False,
    }
    return model, inputs


def sent(call: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """The result of a call, and how many operations of each kind the transport ran for it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = call()
    found = Counter({e.key: e.count for e in profile.key_averages() if e.key.startswith(SENT)})
    return result, dict(found)


# *** what ranks do; each answers something that JSON knows


def compare(here: parallel.Ranks, model: str, sets: list[str | None], inner: str) -> Any:
    """For each set of kernels: the largest difference from one process, and what was sent; first of eager DTensors."""
    net, inputs = globals()[model]()
    found = []
    with torch.no_grad():
        expected = net(**inputs)[0]
        parallel.shard(net, here.world)
        out, counts = sent(lambda: net(**inputs)[0])
        scale = expected.abs().max().item()
        found.append({"off": (out - expected).abs().max().item(), "scale": scale, "sent": counts})
        for kernels in sets:
            torch._dynamo.reset()
            backend = fluxrewrite.backend(inner, kernels, strict=True, provider="reference")
            run = torch.compile(net, backend=backend, fullgraph=True)
            run(**inputs)
            out, counts = sent(lambda run=run: run(**inputs)[0])
            (report,) = backend.reports
            found.append(
                {
                    "off": (out - expected).abs().max().item(),
                    "sent": counts,
                    "rewritten": {k: s.rewritten for k, s in report.summary.kinds.items() if s.rewritten},
                    "tp": report.model.tp,
                    "heads": sorted({s.shapes["heads"] for s in report.sites if s.kind == "attention"}),
                    "columns": sorted({s.shapes["columns"] for s in report.sites if s.kind == "qkv"}),
                    "rest": sorted({s.shapes["rest"] for s in report.sites if "rest" in s.shapes}),
                }
            )
    return found


def placed(here: parallel.Ranks, config: str) -> Any:
    """The latents of a model in parts, of which no rank ever held the whole, and those of one process."""
    from fluxrewrite.models import Shapes, find_model
    from fluxrewrite.models.workload import realise

    given = (find_model(config), Shapes(image_tokens=12, text_tokens=6), torch.float32)
    whole, parts = realise(*given), realise(*given, world=here.world)
    (expected,), (found,) = whole.steps(1), parts.steps(1)
    return {"off": (found - expected).abs().max().item(), "scale": expected.abs().max().item()}


def differ(here: parallel.Ranks, options: list[dict[str, Any]], strict: bool) -> Any:
    """Each rank compiles with options of its own."""
    net, inputs = flux2()
    parallel.shard(net, here.world)
    backend = fluxrewrite.backend("eager", provider="reference", strict=strict, **options[here.rank])
    with torch.no_grad():
        torch.compile(net, backend=backend)(**inputs)
    return "ran"


def broken(here: parallel.Ranks, strict: bool) -> Any:
    """On the last rank a policy raises in the pass itself: the graph would be compiled as it was."""
    net, inputs = flux2()
    parallel.shard(net, here.world)
    backend = fluxrewrite.backend("eager", "attention", provider="reference", strict=strict)
    if here.rank == here.world - 1:

        class Broken(Rewriter):
            def rewrite(self, local: Any, joinable: Any) -> Any:
                raise ValueError("planted")

        backend.rewriter = Broken(**vars(backend.rewriter))
    with torch.no_grad():
        torch.compile(net, backend=backend)(**inputs)
    return "ran"


def fails_inside(here: parallel.Ranks, moment: str) -> Any:
    """On the last rank the inner backend fails: to compile, or in the first run."""

    def inner(gm: Any, given: Any) -> Any:
        def run(*inputs: Any) -> Any:
            raise ValueError("planted in the first run")

        if here.rank < here.world - 1 or not any("fluxrewrite" in str(n.target) for n in gm.graph.nodes):
            return gm.forward
        if moment == "compile":
            raise ValueError("planted in the compile")
        return run

    net, inputs = flux2()
    parallel.shard(net, here.world)
    backend = fluxrewrite.backend(inner, "attention", provider="reference")
    with torch.no_grad():
        torch.compile(net, backend=backend)(**inputs)
    return "ran"


def dies(here: parallel.Ranks, note: str) -> Any:
    """The last rank is killed between two steps, and notes when."""
    net, inputs = flux2()
    parallel.shard(net, here.world)
    run = torch.compile(net, backend=fluxrewrite.backend("eager", "attention", strict=True, provider="reference"))
    with torch.no_grad():
        for step in range(1000):
            if here.rank == here.world - 1 and step == 2:
                Path(note).write_text(str(time.time()))
                os.kill(os.getpid(), 9)
            run(**inputs)
    return "ran"


def stops(here: parallel.Ranks) -> Any:
    """The last rank answers nothing for a long time, in the middle."""
    x = torch.ones(4)
    torch.distributed.all_reduce(x)
    if here.rank == here.world - 1:
        time.sleep(8)
    torch.distributed.all_reduce(x)
    return "ran"


def tells(here: parallel.Ranks, plans: list[list[list[str]] | None]) -> Any:
    """`agree` on some plans one after the other; a rank without plans comes and says nothing."""
    mine = plans[here.rank]
    if mine is None:
        time.sleep(4)
        return "silent"
    for plan in mine:
        parallel.agree(plan, range(here.world))
    return len(mine)


def raises(here: parallel.Ranks, message: str) -> Any:
    """An error that has nothing to do with ranks."""
    raise RuntimeError(message)


# *** running them


def _enter(name: str, rank: int, world: int, folder: str, timeout_s: float, given: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    out = Path(folder, f"rank{rank}.json")
    try:
        with parallel.process_group(rank, world, Path(folder, "store"), timeout_s) as here:
            answer = {"result": globals()[name](here, **given)}
    except BaseException as error:
        chain = [error]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)
        answer = {"error": [f"{type(e).__name__}: {e}" for e in chain], "trace": traceback.format_exc()}
    out.write_text(json.dumps({**answer, "at": time.time()}))


def run_ranks(
    name: str, world: int, folder: Path, timeout_s: float = 20, limit_s: float = 100, **given: Any
) -> list[Any]:
    """What each of `world` processes answers for the function `name`: {"result": ...} or {"error": [...]}; None if killed.

    Fails when they are not done after `limit_s`; what still runs then is ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "diffusers", __name__])
    started = [
        context.Process(target=_enter, args=(name, rank, world, str(folder), timeout_s, given)) for rank in range(world)
    ]
    for process in started:
        process.start()
    end = time.monotonic() + limit_s
    try:
        for process in started:
            process.join(max(0.0, end - time.monotonic()))
        late = [i for i, p in enumerate(started) if p.is_alive()]
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
    assert not late, f"ranks {late} hang"
    files = [folder / f"rank{rank}.json" for rank in range(world)]
    return [json.loads(f.read_text()) if f.exists() else None for f in files]
