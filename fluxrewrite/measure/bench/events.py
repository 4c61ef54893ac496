"""How the record of a bench grows with the events of its workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ...cost.evidence import Case
from ...cost.runs import MachineInfo, Runs, Timed, Variant
from .worker_process import WorkerFailed

__all__ = ["add_baseline_run", "apply_event", "changed", "cosine", "latents_of"]


def changed(runs: Runs, variant: Variant) -> Runs:
    """The runs with this variant instead of its earlier state, or added as the last one."""
    names = [v.name for v in runs.variants]
    at = names.index(variant.name) if variant.name in names else len(names)
    return runs.model_copy(update={"variants": (*runs.variants[:at], variant, *runs.variants[at + 1 :])})


def apply_event(runs: Runs, name: str, event: Mapping[str, Any], root: Path) -> Runs:
    """The runs, updated by an event of a variant's worker.

    Args:
        runs: the runs before the event.
        name: the variant.
        event: what its worker sent.
        root: the folder that `latents_of` puts the variants' latents in.

    Raises:
        WorkerFailed: the event is malformed.
    """
    try:
        if event["event"] == "ready":
            machine = MachineInfo(**{**dict(runs.machine), "threads": event["threads"], "device": event["device"]})
            case = Case(**{**dict(runs.case), "dtype": event["dtype"]})
            return runs.model_copy(update={"machine": machine, "case": case})
        if event["event"] != "run":
            return runs
        now, run = runs.named(name), _timed(event)
        stats = {k: v for k, v in event.items() if k not in ("event", "steps_s", "others")}
        variant = Variant.model_validate({**dict(now), **stats, "runs": (*now.runs, run)})
    except (KeyError, ValidationError) as error:
        raise _malformed(error) from error
    return _compared(changed(runs, variant), root)


def add_baseline_run(runs: Runs, names: Iterable[str], event: Mapping[str, Any]) -> Runs:
    """The runs with another run of vanilla, recorded for the variants that it was run in turn with.

    Such a run is no run of vanilla itself: it is there so that each variant is compared with vanilla at the same time.

    Args:
        runs: the runs before the event.
        names: the variants that vanilla ran in turn with.
        event: what vanilla's worker sent.

    Raises:
        WorkerFailed: the event is malformed.
    """
    if event["event"] != "run":
        return runs
    try:
        run = _timed(event)
    except (KeyError, ValidationError) as error:
        raise _malformed(error) from error
    for name in names:
        now = runs.named(name)
        runs = changed(runs, now.model_copy(update={"beside": (*now.beside, run)}))
    return runs


def _timed(event: Mapping[str, Any]) -> Timed:
    return Timed(steps_s=event["steps_s"], others=event.get("others"))


def _malformed(error: KeyError | ValidationError) -> WorkerFailed:
    what = str(error)
    if isinstance(error, ValidationError):
        what = "; ".join(str(e["loc"]) + " " + e["msg"] for e in error.errors())
    return WorkerFailed(f"the worker reported a run that makes no sense ({what})")


def latents_of(root: Path, variant: str) -> Path:
    """The file for the last latents of a variant. A "/" in its name is replaced, so that the file is always in `root`."""
    return root / f"{variant.replace('/', '_')}.pt"


def _compared(runs: Runs, root: Path) -> Runs:
    """The runs with the cosine between the last latents of each variant and those of vanilla."""
    base = _read(latents_of(root, "vanilla"))
    if base is None:
        return runs
    found = []
    for variant in runs.variants:
        latents = None if variant.name == "vanilla" else _read(latents_of(root, variant.name))
        if latents is not None and variant.output is not None:
            output = variant.output.model_copy(update={"cosine": cosine(latents, base)})
            variant = variant.model_copy(update={"output": output})
        found.append(variant)
    return runs.model_copy(update={"variants": tuple(found)})


def _read(path: Path) -> Tensor | None:
    return torch.load(path, weights_only=True) if path.is_file() else None


def cosine(a: Tensor, b: Tensor) -> float | None:
    """The cosine between two tensors of one size, computed in float64.

    None if the sizes differ or a value is not finite. A tensor of zeros has cosine 1 to zeros and 0 to anything else.
    """
    x, y = a.double().reshape(-1), b.double().reshape(-1)
    if x.shape != y.shape or not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        return None
    length = float(x.norm() * y.norm())
    if not length:
        return float(bool(x.norm() == y.norm()))
    return min(1.0, max(-1.0, float(x @ y) / length))
