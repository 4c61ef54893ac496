"""The verification of one model: its sites on captured activations, then the denoising loop."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from ... import parallel
from ...analysis import analyse
from ...dynamo.backend import Backend, backend
from ...dynamo.failures import Failures
from ...errors import CheckFailed, FluxrewriteError, InputError, one_line
from ...graph.localize import LocalGraph, localise
from ...models.capture import fresh_entry, own_cache_entries
from ...models.registry import Shapes
from ...models.workload import Workload
from ...rewrite.joined_weights import owned
from ...rewrite.plan import Plan, Policy
from ..rendezvous import RankGroup
from .loop import chain_of, origin, run_loop
from .ranks import of_all_ranks
from .records import LoopResult, Setting, SiteResult, StepResult, Verification
from .sites import Checking, checks_of
from .tensor_error import least_cosine

__all__ = ["Progress", "VerifyOptions", "judge", "verify"]


@dataclass(frozen=True)
class VerifyOptions:
    """What is verified, and how.

    Attributes:
        kernels, policy, provider, execution, evidence: as `fluxrewrite.backend` takes them, except for the policy "measure".
        device: device profile that the policy "auto" predicts with.
        inner: backend that compiles the rewritten model for the loop.
        steps: number of steps in the denoising loop.
        tolerance: largest error of a site relative to the largest expected value; `TOLERANCES` has the defaults.

    Raises InputError for fewer than 1 step, a negative tolerance, and the policy "measure".
    """

    kernels: str | Iterable[str] | None = None
    policy: Policy = "all"
    provider: str = "builtin"
    execution: str = "reference"
    evidence: tuple[str | Path, ...] = ()
    device: str | Path = "trn2"
    inner: str = "eager"
    steps: int = 4
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"--steps {self.steps}: must be 1 or more")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise InputError(f"--tolerance {self.tolerance:g}: must be 0 or more")
        if self.policy == "measure":
            raise InputError(
                "policy 'measure' may choose differently each time; verify 'all', which includes its sites, or 'auto'"
            )

    def backend(self) -> Backend:
        """The backend to verify. Raises InputError as `fluxrewrite.backend` does."""
        made = backend(
            self.inner,
            self.kernels,
            self.policy,
            strict=True,
            provider=self.provider,
            execution=self.execution,
            device=self.device if self.policy == "auto" else None,
            evidence=self.evidence,
            proof="structural",  # a proof on random inputs adds nothing: every site runs here on the model's own values
        )
        made.failures = Failures()  # so that a kernel that failed elsewhere in this process is not left out
        return made


@dataclass(frozen=True)
class Progress:
    """Callbacks for progress.

    Attributes:
        found: called with the number of sites of a graph once it is planned.
        site, step: called with the result of each site and of each step.
    """

    found: Callable[[int], None] = lambda _: None
    site: Callable[[SiteResult], None] = lambda _: None
    step: Callable[[StepResult], None] = lambda _: None


def verify(
    workload: Workload,
    options: VerifyOptions = VerifyOptions(),
    shapes: Shapes | None = None,
    *,
    seed: int = 0,
    progress: Progress = Progress(),
    rank_group: RankGroup | None = None,
) -> Verification:
    """Compare a model, with its weights and inputs, with what fluxrewrite makes of it.

    First the original graph runs once, and each site's replacement runs on the operands that it has there. Then the denoising loop
    runs with the original and with the compiled rewritten model. On several ranks, each has its part of the model.

    Args:
        workload: the model and its inputs, as `fluxrewrite.models.workload.realise` makes them.
        options: what to verify.
        shapes, seed: what the workload was made with, for the record.
        progress: called as the work proceeds.
        rank_group: the ranks that the model is divided among, which all return the same; None for a single process.

    Raises:
        InputError: unknown names in `options`, a model that itself fails, or one in which nothing is rewritten.
        RankError: another rank ended or does not answer; torch may raise an error of its own for this.
        RewriteError: on several ranks, the rewritten model fails, or the ranks plan differently.
    """
    start = time.perf_counter()
    rewriter = options.backend()
    sites = _sites(workload, rewriter, options, progress)
    _require_sites(sites, workload, rewriter, options)
    loop = _loop(workload, rewriter, options, progress, sites)
    if rank_group is not None:
        sites, loop = of_all_ranks(rank_group, sites, loop)
    return Verification(
        setting=_setting(workload, rewriter, options, shapes, seed),
        sites=tuple(sites),
        loop=loop,
        seconds=round(time.perf_counter() - start, 3),
    )


def _require_sites(sites: Sequence[SiteResult], workload: Workload, rewriter: Backend, options: VerifyOptions) -> None:
    """Raise InputError when there are no sites: a model without rewrites would pass every comparison."""
    if not sites:
        words = ",".join(rewriter.settings.selection.names())
        raise InputError(
            f"{workload.name}: nothing was rewritten with kernels {words}, policy {options.policy!r}, provider "
            f"{options.provider!r}; fluxrewrite inspect {workload.name} says why"
        )


def _sites(workload: Workload, rewriter: Backend, options: VerifyOptions, progress: Progress) -> list[SiteResult]:
    """The result of every site that the backend rewrites, from the first step."""
    found: list[SiteResult] = []

    def done(result: SiteResult) -> None:
        found.append(result)
        progress.site(result)

    graphs = 0

    def checking(gm: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        nonlocal graphs
        local = localise(gm)
        checks = checks_of(local.gm, _agreed(gm, local, inputs, rewriter))
        progress.found(len(checks))
        runs = [Checking(local.gm, checks, graphs, options.tolerance, done)]
        graphs += 1
        return local.taking_dtensors(lambda *values: runs.pop().run(*values) if runs else local.gm.forward(*values))

    try:
        with own_cache_entries():
            compiled = torch.compile(fresh_entry(workload.model), backend=checking, dynamic=False)
            for _ in workload.steps(1, lambda **inputs: compiled(inputs)):
                pass
    except Exception as error:
        raise _cause(workload, error) from error
    return found


def _agreed(gm: GraphModule, local: LocalGraph, inputs: list[Any], rewriter: Backend) -> Plan:
    """The plan for the graph of one rank. If ranks plan differently all raise; some would wait for what others never compute."""
    found: Plan | Exception
    try:
        found = _plan(local.gm, local.inputs(inputs), rewriter)
        detail = [f"{d.finding.kind} at {d.finding.path}: {d.choice}" for d in found.decisions]
    except Exception as error:
        found = error
        detail = [f"no plan ({one_line(error)})"]
    parallel.agree(detail, parallel.peers(gm))
    if isinstance(found, Exception):
        raise found
    return found


def _plan(gm: GraphModule, inputs: list[Any], rewriter: Backend) -> Plan:
    """The backend's plan for this graph."""
    settings = rewriter.settings
    analysed, _ = analyse(gm, settings.selection, settings.policy, settings.target, joinable=owned(gm, inputs))
    return analysed.plan


def _cause(workload: Workload, error: Exception) -> BaseException:
    """What stopped the first step: an error of fluxrewrite, the end of another rank, or an error of the model itself."""
    known = (e for e in chain_of(error) if isinstance(e, FluxrewriteError) or parallel.of_transport(e))
    found = next(known, None)
    return found or InputError(f"{workload.name}: the first step fails: {one_line(origin(error))}")


def _loop(
    workload: Workload, rewriter: Backend, options: VerifyOptions, progress: Progress, sites: Sequence[SiteResult]
) -> LoopResult:
    """Run the denoising loop, and note it if its rewrites are not those that were checked."""
    least = least_cosine(options.tolerance or 0.0)
    with own_cache_entries():
        compiled = torch.compile(fresh_entry(workload.model), backend=rewriter, dynamic=False)
        loop = run_loop(workload, lambda **inputs: compiled(inputs), options.steps, least, progress.step)
    checked = Counter((s.kind, s.form, s.path, s.choice) for s in sites)
    taken = Counter((s.kind, s.form, s.path, s.choice) for r in rewriter.reports for s in r.sites if s.choice != "keep")
    if loop.note or taken == checked:
        return loop
    (kind, form, path, _), *_ = (taken - checked) + (checked - taken)
    note = (
        f"it rewrote {taken.total()} sites but {checked.total()} were checked; they differ in {kind}:{form} at {path}"
    )
    return loop.model_copy(update={"note": note})


def _setting(
    workload: Workload, rewriter: Backend, options: VerifyOptions, shapes: Shapes | None, seed: int
) -> Setting:
    dtypes = [p.dtype for p in workload.model.parameters()] or [torch.get_default_dtype()]
    policy = options.policy if isinstance(options.policy, str) else getattr(options.policy, "__name__", "callable")
    generated = shapes if workload.denoises else None
    return Setting(
        model=workload.name,
        dtype=str(max(dtypes, key=dtypes.count)).removeprefix("torch."),
        batch=generated.batch if generated else None,
        image_tokens=generated.image_tokens if generated else None,
        text_tokens=generated.text_tokens if generated else None,
        kernels=rewriter.settings.selection.names(),
        policy=policy,
        provider=options.provider,
        execution=options.execution,
        inner=rewriter.inner_name,
        steps=options.steps,
        seed=seed,
        tp=parallel.degree(workload.model),
        versions={
            "fluxrewrite": version("fluxrewrite"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def judge(found: Verification) -> None:
    """Raise CheckFailed if a limit is exceeded: a line on the sites with the worst of them, and one on the loop."""
    lines = []
    failed = [s for s in found.sites if not s.passed]
    if failed:
        worst = max(failed, key=lambda s: s.excess)
        lines.append(f"{len(failed)} of {len(found.sites)} sites fail; worst: {worst.name}: {_figures(worst)}")
    wrong = [s for s in found.loop.steps if not s.passed]
    if wrong:
        first = min(wrong, key=lambda s: -1.0 if s.cosine is None else s.cosine)
        detail = first.note or f"cosine {first.cosine:.6f} (limit {first.least_cosine:g})"
        lines.append(
            f"{len(wrong)} of {len(found.loop.steps)} steps of the loop fail; worst: step {first.step}: {detail}"
        )
    if found.loop.note:
        lines.append(f"the loop: {found.loop.note}")
    if lines:
        raise CheckFailed(*lines)


def _figures(site: SiteResult) -> str:
    if site.note:
        return site.note
    figures = f"error {site.relative:.2g} of the largest value (limit {site.tolerance:.2g})"
    figures += f", {site.norm:.2g} of the norm (limit {site.norm_tolerance:.2g})"
    return f"{figures}, cosine {site.cosine:.6f} (limit {site.least_cosine:g})"
