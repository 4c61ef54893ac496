"""The parameters of a divided model, made or read one at a time: a rank keeps its part of each and frees the rest.

`parallel.shard` divides a model that is complete in memory. If four ranks each build FLUX.2-klein-4B in bfloat16 for it, they need
31 GB; here a rank holds only its part and one whole parameter.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from ..errors import InputError
from ..parallel import cpu_mesh, divisible

__all__ = ["Whole", "place", "weights_of"]

Whole = Callable[[str, Tensor], Any]
"""Takes a parameter's name and a tensor like it without values; returns the whole parameter, or a `PySafeSlice` of a file."""

_FILE = "diffusion_pytorch_model.safetensors"
"""The name that diffusers gives to weights; with ".index.json" appended, the index of several files."""


def place(model: nn.Module, world: int, whole: Whole, mesh: DeviceMesh | None = None) -> nn.Module:
    """Fill a model, in place, with this rank's part of its parameters, divided by its `_tp_plan`, and return it.

    The result is that of `parallel.shard` for the model with the same parameters. Every rank calls `whole` once for each parameter,
    in the order of `named_parameters`; nothing is sent between ranks.

    Args:
        model: a model whose class has a `_tp_plan`, with parameters on the device "meta".
        world: number of ranks.
        whole: makes or reads a parameter.
        mesh: as for `parallel.shard`.

    Raises:
        InputError: the model cannot be divided, or uses one parameter under two names.
    """
    plan = dict(divisible(model, world))
    from diffusers.hooks.tensor_parallel import _hooks_only_styles, _resolve_tp_plan, resolve_tp_shard_specs
    from torch.distributed.tensor.parallel import parallelize_module

    mesh = cpu_mesh(world) if mesh is None else mesh
    specs = resolve_tp_shard_specs(model, plan, world)
    for name, parameter in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        part = _part(whole(name, parameter), specs.get(name), mesh, parameter.dtype)
        model.get_submodule(owner).register_parameter(last, nn.Parameter(part, requires_grad=False))
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if left:
        raise InputError(
            f"{type(model).__name__}: {left[0]} is a parameter of another module too, and cannot be divided"
        )
    for module, styles in _resolve_tp_plan(model, plan):
        parallelize_module(module, mesh, _hooks_only_styles(styles), src_data_rank=None)
    return model


def _part(whole: Any, spec: Any, mesh: DeviceMesh, dtype: torch.dtype) -> Tensor:
    """This rank's part of a parameter, in memory of its own; a plain tensor if the plan does not name it."""
    from diffusers.hooks.tensor_parallel import _local_shard

    if spec is None or spec.dim is None:
        all_of_it: Tensor = (whole if isinstance(whole, Tensor) else whole[:]).to(dtype)
        return all_of_it if spec is None else DTensor.from_local(all_of_it, mesh, [Replicate()], run_check=False)
    local = _local_shard(whole, spec.dim, spec.block_sizes, mesh).to(dtype)
    if local.untyped_storage().nbytes() > local.numel() * local.element_size():
        local = local.clone()  # a view would keep the whole parameter alive
    return DTensor.from_local(local, mesh, [Shard(spec.dim)], run_check=False)


@contextlib.contextmanager
def weights_of(folder: Path) -> Iterator[Whole]:
    """Open the weights that diffusers saved in a folder. Yields a `Whole` that reads only the slices that are taken of it.

    Raises InputError, also from what it yields, for a file that does not exist or cannot be read, and for a parameter that is
    missing or has another shape.
    """
    from safetensors import SafetensorError, safe_open

    with contextlib.ExitStack() as stack:
        try:
            files = [stack.enter_context(safe_open(path, "pt")) for path in _files(folder)]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(
                f"{folder}: the weights cannot be loaded ({type(error).__name__}: {error}); ranks read {_FILE} or its index"
            ) from error
        held = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # no mapping

        def whole(name: str, like: Tensor) -> Any:
            if name not in held:
                raise InputError(f"{folder}: the weights have no {name}; save the model again with save_pretrained")
            found = held[name].get_slice(name)
            if tuple(found.get_shape()) != tuple(like.shape):
                raise InputError(f"{folder}: {name} has shape {found.get_shape()}, config.json says {list(like.shape)}")
            return found

        yield whole


def _files(folder: Path) -> list[Path]:
    index = folder / f"{_FILE}.index.json"
    if not index.is_file():
        return [folder / _FILE]
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
