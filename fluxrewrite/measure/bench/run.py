"""All variants of a bench, one after the other."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ...cost.devices import load_device
from ...cost.evidence import Case
from ...cost.runs import RUNS_SCHEMA, MachineInfo, Runs, Setup, Versions
from ...dynamo.backend import backend
from ...dynamo.inner import inner_backends
from ...dynamo.machine import processor
from ...errors import InputError
from ...models.registry import ModelSpec, Shapes, default_dtype, find_model
from ...parallel import divisible
from ..rendezvous import RankGroup
from .schedule import WorkerScheduler
from .variants import Chosen, backend_of
from .worker_process import WORKER

__all__ = ["bench", "check_setup"]

ReportEvent = Callable[[Chosen, Mapping[str, Any]], None]
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
    report_event: ReportEvent = lambda chosen, event: None,
    timeout_s: float | None = None,
    worker: Sequence[str] = WORKER,
    *,
    rank_group: RankGroup | None = None,
) -> Runs:
    """Run every variant in a process of its own, with empty caches; on several ranks, in a group of one for each rank.

    First the cold runs, one after the other, then the warm ones in turn: a first one of each variant, a second one, and so on,
    so that a slow minute of a shared machine slows down all variants and not one. Where all workers together do not fit into
    memory, some at a time, each time beside vanilla, if that is the first variant. On several ranks, on an accelerator, and where
    no two workers fit, one variant after the other.

    A variant that fails keeps its finished runs and has an error. On several ranks it fails on all of them if on one.

    Args:
        setup: what to run; `check_setup` first.
        chosen: the variants, in order.
        keep: called with all there is after every finished run and every failure.
        tell: called with the variant at work and each event of its worker.
        timeout_s: seconds that a variant may take; those in which it waits for its turn do not count.
        worker: the command that runs one variant.
        rank_group: the ranks, each of which calls this with the same arguments; None: this process alone.

    Raises:
        RankError: another rank ended or does not answer; `keep` has been called with what there is.
    """
    alone = rank_group is not None or torch.device(setup.device).type != "cpu"
    with tempfile.TemporaryDirectory(prefix="fluxrewrite-bench-", ignore_cleanup_errors=True) as name:
        turns = WorkerScheduler(
            _empty(setup, 1 if rank_group is None else rank_group.here.world),
            Path(name),
            keep,
            report_event,
            timeout_s,
            worker,
            rank_group,
        )
        turns.run_all(chosen, alone)
    return turns.runs


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
        machine=MachineInfo(processor=processor() or platform.machine(), cores=os.cpu_count() or 1),
        case=case,
        setup=setup,
    )


def _profile_name(setup: Setup) -> str:
    """The device that evidence is filed under: the profile's name, by default that of the accelerator's inner backend."""
    if setup.profile is not None:
        return load_device(setup.profile).name
    kind = torch.device(setup.device).type
    return next((b.profile for b in inner_backends().values() if b.accelerator == kind), kind)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
