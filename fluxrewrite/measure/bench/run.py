"""A whole bench: check the setup, run every variant, return the record."""

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
    """Raise InputError for a model, backend, kernel, profile or device that does not exist, which no worker could run.

    On several ranks, also for a model that cannot be divided among them, for a device other than the CPU, and for the policy
    "measure".
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
        raise InputError(
            f"--device {setup.device!r} on {world} ranks: ranks run on CPUs, over gloo; leave out --device"
        )
    if any(variant.policy == "measure" for variant in chosen):
        raise InputError(
            f"--variants measure: each of {world} ranks would choose by its own times; use 'auto', 'all' or kernels"
        )
    _check_division(spec, shapes, getattr(torch, setup.dtype), world)


def _check_division(spec: ModelSpec, shapes: Shapes, dtype: torch.dtype, world: int) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), default_dtype(dtype):
        try:
            model, _ = spec.build(shapes, dtype)
        except InputError:
            if spec.generated:
                raise
            return  # a callable that computes with its inputs cannot be built without values; its workers report any problem
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
    *,
    report_event: ReportEvent = lambda chosen, event: None,
    timeout_s: float | None = None,
    worker: Sequence[str] = WORKER,
    rank_group: RankGroup | None = None,
) -> Runs:
    """Run every variant in a process of its own, on several ranks in one process per rank; `WorkerScheduler` says in which order.

    A variant that fails keeps its finished runs and gets an error. If it fails on one rank, it fails on all.

    Args:
        setup: what to run, as `check_setup` accepts it.
        chosen: the variants, in order.
        keep: called with the whole record after every finished run and every failure.
        report_event: called with a variant and each event of its worker.
        timeout_s: seconds that a variant may take, without those in which it waits for its turn; None for no limit.
        worker: the command that runs one variant.
        rank_group: the ranks, each of which calls this with the same arguments; None for a single process.

    Raises:
        RankError: another rank ended or does not answer; `keep` has been called with what finished.
    """
    # The ranks agree on one variant at a time (`Together`), and the budget for workers in turn covers host memory only.
    alone = rank_group is not None or torch.device(setup.device).type != "cpu"
    with tempfile.TemporaryDirectory(prefix="fluxrewrite-bench-", ignore_cleanup_errors=True) as name:
        scheduler = WorkerScheduler(
            _empty(setup, 1 if rank_group is None else rank_group.here.world),
            Path(name),
            keep=keep,
            report_event=report_event,
            timeout_s=timeout_s,
            worker=worker,
            rank_group=rank_group,
        )
        scheduler.run_all(chosen, alone)
    return scheduler.runs


def _empty(setup: Setup, world: int) -> Runs:
    """The record of a bench before anything has run."""
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
    """The device name under which evidence is filed: the profile's, by default that of the accelerator's inner backend."""
    if setup.profile is not None:
        return load_device(setup.profile).name
    kind = torch.device(setup.device).type
    return next((b.profile for b in inner_backends().values() if b.accelerator == kind), kind)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
