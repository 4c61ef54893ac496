"""All variants of a bench, one after the other."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ..cost.devices import load_device
from ..cost.evidence import Case
from ..crew import Crew
from ..errors import InputError, RankError
from ..models import ModelSpec, Shapes, default_dtype, find_model
from ..parallel import divisible
from ..times import processor
from ..torch_backend import backend
from .process import WORKER, Failed, conversation
from .ranked import Together
from .runs import RUNS_SCHEMA, Machine, Runs, Setup, Timed, Variant, Versions
from .variants import Chosen, Spec, backend_of

__all__ = ["bench", "check_setup", "cosine"]

Tell = Callable[[Chosen, Mapping[str, Any]], None]
Keep = Callable[[Runs], None]


def check_setup(setup: Setup, chosen: Sequence[Chosen], world: int = 1) -> None:
    """Raise InputError for what no worker could run: a model, backend, kernel, profile or device that is not there.

    On several ranks also for a model that cannot be divided among them, and for what they could not do together.
    """
    spec = find_model(setup.model)
    shapes = Shapes(setup.image_tokens, setup.text_tokens, setup.batch)
    backend(setup.inner, policy="none")
    _check_device(setup.device)
    for variant in chosen:
        backend_of(variant, setup)
    if world == 1:
        return
    if torch.device(setup.device).type != "cpu":
        raise InputError(f"--device {setup.device!r} on {world} ranks: they work on CPUs, by gloo; leave --device out")
    if any(variant.policy == "measure" for variant in chosen):
        raise InputError(
            f"--variants measure: each of {world} ranks would choose by its own times; give 'auto', 'all' or kernels"
        )
    _check_division(spec, shapes, getattr(torch, setup.dtype), world)


def _check_division(spec: ModelSpec, shapes: Shapes, dtype: torch.dtype, world: int) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), default_dtype(dtype):
        try:
            model, _ = spec.build(shapes, dtype)
        except InputError:
            if spec.generated:
                raise
            return  # a callable that computes with its numbers cannot be built without: its workers will tell
        divisible(model, world)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name!r}: not a torch device; give cpu, cuda, cuda:1") from error
    if device.type == "cpu":
        return
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if here is None or here.type != device.type:
        there = f"the accelerator here is {here.type}" if here else "torch sees no accelerator here"
        raise InputError(f"--device {name!r}: {there}; give {here.type if here else 'cpu'}")
    if (device.index or 0) >= torch.accelerator.device_count():
        raise InputError(f"--device {name!r}: there are {torch.accelerator.device_count()} of them, counted from 0")


def bench(
    setup: Setup,
    chosen: Sequence[Chosen],
    keep: Keep = lambda runs: None,
    tell: Tell = lambda chosen, event: None,
    timeout_s: float | None = None,
    worker: Sequence[str] = WORKER,
    *,
    crew: Crew | None = None,
) -> Runs:
    """Run every variant in a process of its own, with empty caches; on several ranks, in a group of one for each rank.

    A variant that fails keeps its finished runs and has an error. On several ranks it fails on all of them if on one.

    Args:
        setup: what to run; `check_setup` first.
        chosen: the variants, in order.
        keep: called with all there is after every finished run and every failure.
        tell: called with the variant at work and each event of its worker.
        timeout_s: seconds that a variant may take.
        worker: the command that runs one variant.
        crew: the ranks, each of which calls this with the same arguments; None: this process alone.

    Raises:
        RankError: another rank ended or does not answer; `keep` has been called with what there is.
    """
    together = Together(crew)
    runs = _empty(setup, together.world)
    with tempfile.TemporaryDirectory(prefix="fluxrewrite-bench-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        for variant in chosen:
            runs = _with(runs, Variant(name=variant.name, kernels=variant.kernels))
            tell(variant, {"event": "start"})
            meeting = together.begin()
            spec = Spec(setup=setup, chosen=variant, latents=str(_latents(root, variant.name)), meeting=meeting)
            folder = root / f"{len(runs.variants)}.work"
            folder.mkdir()
            failure = None
            try:
                talk = conversation(spec.model_dump_json(), folder, timeout_s, worker, together.watch)
                with contextlib.closing(talk) as events:
                    for event in events:
                        tell(variant, event)
                        runs = _heard(runs, event, root)
                        if event["event"] == "run":
                            keep(runs)
            except Failed as error:
                failure = error
            except (KeyboardInterrupt, RankError) as error:
                _ended(runs, str(error) or "interrupted", keep)
                raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)  # caches of every variant at once would be many
            runs = _settled(runs, together, failure, keep)
    return runs


def _settled(runs: Runs, together: Together, failure: Failed | None, keep: Keep) -> Runs:
    """The runs with why the variant at work failed, if it did on any rank."""
    try:
        failure = together.end(failure)
    except (KeyboardInterrupt, RankError) as error:
        _ended(runs, str(error) or "interrupted", keep)
        raise
    return runs if failure is None else _ended(runs, str(failure), keep)


def _ended(runs: Runs, error: str, keep: Keep) -> Runs:
    """The runs with what stopped the variant at work."""
    runs = _with(runs, runs.variants[-1].model_copy(update={"error": error}))
    keep(runs)
    return runs


def _with(runs: Runs, variant: Variant) -> Runs:
    """The runs with this variant in the place of the last one, if that is an earlier state of it, or after it."""
    others = tuple(v for v in runs.variants if v.name != variant.name)
    return runs.model_copy(update={"variants": (*others, variant)})


def _heard(runs: Runs, event: Mapping[str, Any], root: Path) -> Runs:
    """The runs with what a worker told. Raises Failed when that makes no sense."""
    try:
        if event["event"] == "ready":
            machine = Machine(**{**dict(runs.machine), "threads": event["threads"], "device": event["device"]})
            case = Case(**{**dict(runs.case), "dtype": event["dtype"]})
            return runs.model_copy(update={"machine": machine, "case": case})
        if event["event"] != "run":
            return runs
        now = runs.variants[-1]
        run = Timed(steps_s=event["steps_s"], others=event.get("others"))
        told = {k: v for k, v in event.items() if k not in ("event", "steps_s", "others")}
        changed = Variant.model_validate({**dict(now), **told, "runs": (*now.runs, run)})
    except (KeyError, ValidationError) as error:
        what = (
            "; ".join(str(e["loc"]) + " " + e["msg"] for e in error.errors())
            if isinstance(error, ValidationError)
            else error
        )
        raise Failed(f"the worker told of a run that makes no sense ({what})") from error
    return _compared(_with(runs, changed), root)


def _latents(root: Path, variant: str) -> Path:
    """Where a worker puts the last latents of a variant; names of variants hold no path."""
    return root / f"{variant.replace('/', '_')}.pt"


def _compared(runs: Runs, root: Path) -> Runs:
    """The runs with every variant's cosine to vanilla."""
    base = _read(_latents(root, "vanilla"))
    if base is None:
        return runs
    changed = []
    for variant in runs.variants:
        latents = None if variant.name == "vanilla" else _read(_latents(root, variant.name))
        if latents is not None and variant.output is not None:
            output = variant.output.model_copy(update={"cosine": cosine(latents, base)})
            variant = variant.model_copy(update={"output": output})
        changed.append(variant)
    return runs.model_copy(update={"variants": tuple(changed)})


def _read(path: Path) -> Tensor | None:
    return torch.load(path, weights_only=True) if path.is_file() else None


def cosine(a: Tensor, b: Tensor) -> float | None:
    """Of two tensors of one size, in float64; None where not all is finite, or the sizes differ. Zeros are like zeros only."""
    x, y = a.double().reshape(-1), b.double().reshape(-1)
    if x.shape != y.shape or not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        return None
    length = float(x.norm() * y.norm())
    if not length:
        return float(bool(x.norm() == y.norm()))
    return min(1.0, max(-1.0, float(x @ y) / length))


def _empty(setup: Setup, world: int) -> Runs:
    """A bench in which nothing has run."""
    case = Case(
        device=_profile_name(setup),
        regime="compile",
        model=setup.model,
        dtype=setup.dtype,
        tp=world,
        batch=setup.batch,
        image_tokens=setup.image_tokens,
        text_tokens=setup.text_tokens,
    )
    return Runs(
        schema=RUNS_SCHEMA,
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        versions=Versions(
            fluxrewrite=importlib.metadata.version("fluxrewrite"),
            torch=torch.__version__,
            python=platform.python_version(),
            diffusers=_version("diffusers"),
        ),
        machine=Machine(processor=processor() or platform.machine(), cores=os.cpu_count() or 1),
        case=case,
        setup=setup,
    )


def _profile_name(setup: Setup) -> str:
    """The device that evidence speaks of: the profile's name, by default that of the profile of such a device."""
    if setup.profile is not None:
        return load_device(setup.profile).name
    kind = torch.device(setup.device).type
    return {"neuron": "trn2"}.get(kind, kind)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
