"""Small programs that the passes know: projections, rotations, attention, and whole regions, as models spell them."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph

from fluxrewrite.models.capture import capture

from . import forms
from .forms import Sizes

__all__ = ["PROGRAMS", "Program", "program"]

SIZES = {"apart": Sizes(2, 5, 3, 8, 12, 4), "equal": Sizes(4, 4, 4, 4, 16, 4), "single": Sizes(1, 6, 2, 4, 6, 3)}
"""Sizes that are all different; of which most are equal, so that a wrong axis goes unseen; and a batch of one."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KINDS = ("apart/float32", "apart/bfloat16", "equal/float32", "single/float32")


@dataclass(frozen=True)
class Program:
    """A traced function and inputs for it.

    Attributes:
        name: of the function, its sizes and its dtype: "rope_halves/apart/float32".
        graph: as Dynamo made it; inputs carry the names of the function's parameters.
        given: a tensor for each input, by name.
    """

    name: str
    graph: Graph
    given: dict[str, torch.Tensor]
    dtype: torch.dtype


PROGRAMS = tuple(f"{fn}/{kind}" for fn in forms.FORMS for kind in KINDS)


@functools.cache
def program(name: str) -> Program:
    """The program of that name, traced once."""
    fn_name, size, dtype = name.split("/")
    fn, sizes, kind = forms.FORMS[fn_name], SIZES[size], DTYPES[dtype]
    given = {p: _made(p, sizes, kind) for p in inspect.signature(fn).parameters if p != "z"}
    traced = capture(_with_sizes(fn, sizes), given).graphs[0].graph
    for node in traced.find_nodes(op="placeholder"):
        node.meta.pop("tensor_dict", None)
        node.target = node.name.removeprefix("l_inputs_").removesuffix("_")
        node._rename(node.target)
    return Program(name, traced, given, kind)


def _with_sizes(fn: Callable[..., Any], sizes: Sizes) -> Callable[..., Any]:
    def run(**given: Any) -> Any:
        return fn(z=sizes, **given)

    return run


def _made(name: str, sizes: Sizes, dtype: torch.dtype) -> torch.Tensor:
    """A tensor for the parameter of that name: the same in every process."""
    shape = forms.SHAPES[name](sizes)
    make = torch.Generator().manual_seed(sum(map(ord, name)) + 1000 * len(shape))
    if name.startswith("keep"):
        found = torch.rand(shape, generator=make) < 0.6
        return found | torch.eye(*shape[-2:], dtype=torch.bool)
    if name.startswith("freqs"):
        return torch.complex(*(torch.randn(shape, generator=make) for _ in range(2)))
    plain = torch.randn(shape, generator=make)
    if name.startswith("mask"):
        plain = plain.masked_fill(torch.rand(shape, generator=make) < 0.3, -math.inf)
        return torch.where(torch.eye(*shape[-2:], dtype=torch.bool), 0.5, plain).to(dtype)
    if name.startswith("w"):
        plain = plain / math.sqrt(shape[-1])
    return plain.to(torch.float32 if name.startswith(("cos", "sin", "turn")) else dtype)
