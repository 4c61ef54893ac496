"""A model with weights and inputs that are the same in every process, and the steps of its denoising loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import InputError
from ..parallel import shard
from .registry import ModelSpec, Shapes, default_dtype
from .weights import place, weights_of

__all__ = ["Call", "Workload", "realise"]

Call = Callable[..., Any]
"""A model, or the result of `torch.compile` for it: takes the inputs by name."""


@dataclass(frozen=True)
class Workload:
    """A model and its inputs, ready to run.

    Attributes:
        name: the name given to `find_model`.
        model: in eval mode, with parameters that require no gradient.
        inputs: keyword arguments of a call.
        denoises: whether the result is a velocity of the latents `hidden_states`, as for the Flux transformers in diffusers.
    """

    name: str
    model: nn.Module
    inputs: Mapping[str, Any]
    denoises: bool

    @torch.no_grad()  # per step: a `with` in a generator would stay active in the caller between steps
    def steps(self, count: int, call: Call | None = None) -> Iterator[Tensor]:
        """Yield the latents after each of `count` steps of a denoising loop: flow matching with Euler steps, as in diffusers.

        A model that does not denoise is called `count` times with the same inputs, and its first result is yielded.

        Args:
            count: number of steps, 1 or more.
            call: what runs instead of the model.
        """
        call = self.model if call is None else call  # not `call or`: a compiled module has no truth value
        yield from self._denoised(count, call) if self.denoises else self._repeated(count, call)

    def _repeated(self, count: int, call: Call) -> Iterator[Tensor]:
        for _ in range(count):
            yield _first(call(**self.inputs))

    def _denoised(self, count: int, call: Call) -> Iterator[Tensor]:
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler: Any = FlowMatchEulerDiscreteScheduler()
        latents: Tensor = self.inputs["hidden_states"]
        scheduler.set_timesteps(count, device=latents.device)
        for time in scheduler.timesteps:
            at = (time / 1000).expand(latents.shape[0]).to(latents.dtype)  # as the pipelines of diffusers pass it
            velocity = _first(call(**{**self.inputs, "hidden_states": latents, "timestep": at}))
            latents = scheduler.step(velocity, time, latents, return_dict=False)[0]
            yield latents


def _first(result: Any) -> Tensor:
    found = next((leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), None)
    if found is None:
        raise InputError(f"the model returns {type(result).__name__} without a tensor; give one that returns tensors")
    return found


def realise(
    spec: ModelSpec,
    shapes: Shapes,
    dtype: torch.dtype,
    seed: int = 0,
    *,
    device: str | torch.device = "cpu",
    world: int = 1,
) -> Workload:
    """Build a model with values: a preset or config with random weights, a folder with its own, a callable with its result.

    The same arguments give the same values in every process. If the model is divided, ranks hold parts of the same weights that a
    single process has. A rank makes or reads one parameter at a time and keeps its part; a callable builds the whole model on every
    rank.

    Args:
        spec: a result of `fluxrewrite.models.find_model`.
        shapes, dtype: sizes and dtype of the inputs; a callable has its own.
        seed: seed of random weights and inputs.
        device: the device that model and inputs are moved to.
        world: number of ranks to divide the model among, which is that of the current process group; 1 for no division.

    Raises:
        InputError: the model cannot be built or divided.
    """
    torch.manual_seed(seed)
    if not spec.generated:
        model, inputs = spec.build(shapes, dtype)
        model = model if world == 1 else shard(model, world)
    else:
        model, inputs = _generated(spec, shapes, dtype, seed, world)
    model = model.eval().requires_grad_(False).to(device)
    inputs = tree_map_only(Tensor, lambda t: t.to(device), dict(inputs))
    return Workload(spec.name, model, inputs, spec.generated)


def _generated(
    spec: ModelSpec, shapes: Shapes, dtype: torch.dtype, seed: int, world: int
) -> tuple[nn.Module, dict[str, Any]]:
    with torch.device("meta"), default_dtype(dtype):
        model, inputs = spec.build(shapes, dtype)
    generator = torch.Generator().manual_seed(seed)
    values = {k: _input(k, v, generator) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    if spec.load is not None and world == 1:
        return spec.load(dtype), values
    if any(
        True for _ in model.buffers()
    ):  # `to_empty` would leave them undefined, and only the model knows their values
        with default_dtype(dtype):
            model, _ = spec.build(shapes, dtype)
    if world > 1:
        return _in_parts(model, spec, generator, world), values
    model = model.to_empty(device="cpu") if any(p.is_meta for p in model.parameters()) else model
    for name, parameter in model.named_parameters():
        _fill(name, parameter.data, generator)
    return model, values


def _in_parts(model: nn.Module, spec: ModelSpec, generator: torch.Generator, world: int) -> nn.Module:
    """The model with this rank's parts of its weights, from its folder or random.

    Random weights are made whole on every rank, so that the generator is in the same state as in a single process.
    """
    if spec.weights is not None:
        with weights_of(spec.weights) as whole:
            return place(model, world, whole)

    def made(name: str, like: Tensor) -> Tensor:
        weight = torch.empty(like.shape, dtype=like.dtype)
        _fill(name, weight, generator)
        return weight

    return place(model, world, made)


def _fill(name: str, weight: Tensor, generator: torch.Generator) -> None:
    """Fill a weight with random values: matrices that preserve the scale of their input, gains near 1, small biases."""
    if weight.dim() >= 2:
        bound = math.sqrt(3 / weight[0].numel())
        weight.uniform_(-bound, bound, generator=generator)
    elif name.endswith("weight"):
        weight.uniform_(0.8, 1.2, generator=generator)
    else:
        weight.uniform_(-0.05, 0.05, generator=generator)


def _input(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """An input by its name: positions for ids, constants for timestep and guidance, otherwise normally distributed values."""
    if name == "img_ids":
        return _grid(like)
    if name == "txt_ids":
        ids = torch.zeros(like.shape, dtype=like.dtype)
        if like.shape[-1] == 4:  # FLUX.2 counts text tokens along the last axis; in FLUX.1 all are at 0
            ids[..., 3] = torch.arange(like.shape[-2], dtype=like.dtype)
        return ids
    if name in ("timestep", "guidance"):
        return torch.full(like.shape, 1.0 if name == "timestep" else 4.0, dtype=like.dtype)
    return torch.randn(like.shape, generator=generator).to(like.dtype)


def _grid(like: Tensor) -> Tensor:
    """Rows and columns of an image, as nearly square as the number of tokens allows, on axes 1 and 2."""
    tokens = like.shape[-2]
    rows = max(n for n in range(1, math.isqrt(tokens) + 1) if tokens % n == 0)
    ids = torch.zeros(like.shape, dtype=like.dtype)
    places = torch.arange(tokens)
    ids[..., 1], ids[..., 2] = places // (tokens // rows), places % (tokens // rows)
    return ids
