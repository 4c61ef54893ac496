"""The correctness matrix: a provider's kernels in a simulator against float64 (`float64_reference`).

Limits, by the dtype of the activations: relative Frobenius error 1e-5 (float32) or 1e-2 (bfloat16), cosine 0.9999. Cases
with scores of +-10,000 have other limits, which follow from the precision of their inputs (`limits_of`).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxrewrite.errors import InputError
from fluxrewrite.provider.check_suite import CheckCase, Result

from ..emulator import EmulationError
from ..toolchain import Emulator, Simulator, Toolchain, has_nki
from . import sample_inputs
from .call_cost import lacks_mode, launcher, refuse_limits, silenced
from .float64_reference import REFERENCES

__all__ = ["CheckCase", "Result", "cases", "limits_of", "run_case", "simulators"]

LENGTHS = (1, 77, 128, 130, 512, 768, 1000, 1536)
HEADS = (1, 6, 24)
HEAD_SIZES = (64, 128)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LOGITS = 1e4
COSINE = 0.9999


def limits_of(case: CheckCase) -> tuple[float, float]:
    """Greatest relative error and least cosine of a case.

    With scores of +-`logits`, an error of d in a score changes its weight by the factor exp(d):
    - float32: the scores themselves are multiples of ulp(10,000) = 2^-10. The limit is two of these.
    - bfloat16 attention: the products of its inputs are exact in float32, so the usual limits hold.
    - bfloat16 norm_rope_attention: normalised q and k are rounded to bfloat16, 2^-9 of each lane, before the product; scores
      move by tens and near ties change sides. The limits are cosine 0.99 and sqrt(2 - 2 * 0.99), the error at that cosine.
    """
    if case.logits and case.dtype == "fp32":
        return 2 * float(np.spacing(np.float32(case.logits))), COSINE
    if case.logits and case.kernel == "norm_rope_attention":
        return math.sqrt(2 - 2 * 0.99), 0.99
    return (1e-2 if case.dtype == "bf16" else 1e-5), COSINE


def cases() -> tuple[CheckCase, ...]:
    """All cases, in the order in which they run."""
    return (*_rope(), *_qkv(), *_attention(), *_norm_rope_attention())


def _rope() -> Iterator[CheckCase]:
    grid = product(DTYPES, LENGTHS, HEAD_SIZES, HEADS, (1, 0))
    for i, (dtype, length, size, heads, interleaved) in enumerate(grid):
        sizes = {"sequence": length, "heads": heads, "head_size": size, "interleaved": interleaved}
        sizes |= {"sequence_dim": 2} if i // 2 % 2 else {}
        sizes |= {"rotary": size // 2} if i // 3 % 3 == 0 else {}
        yield CheckCase("rope", dtype, sizes, quick=length in (1, 130, 512) and heads == 6, cores=1 + i % 5 // 4)


def _qkv() -> Iterator[CheckCase]:
    for i, (dtype, hidden, length) in enumerate(product(DTYPES, (768, 3072), LENGTHS)):
        sizes = {"sequence": length, "hidden": hidden, "query": 768, "bias": i % 2}
        yield CheckCase("qkv", dtype, sizes, quick=hidden == 768 and length in (1, 77, 130), cores=1 + i % 5 // 4)
        if length in (77, 512):
            yield CheckCase("qkv", dtype, sizes | {"key": 256}, quick=hidden == 768 and length == 77)  # grouped heads
            rows = {"query": 256, "packed": 1, "rest": 200}
            yield CheckCase("qkv", dtype, sizes | rows, quick=hidden == 768 and length == 77, cores=1 + (length == 512))


def _attention() -> Iterator[CheckCase]:
    def case(dtype: str, sizes: dict[str, int], quick: bool, **more: Any) -> CheckCase:
        return CheckCase("attention", dtype, sizes, quick=quick, **more)

    for i, (dtype, heads, size, length) in enumerate(product(DTYPES, HEADS, HEAD_SIZES, LENGTHS)):
        sizes = {"heads": heads, "sequence": length, "head_size": size, "bshd": i % 2}
        yield case(dtype, sizes, heads == 1 and length in (1, 77, 130, 512), cores=1 + i % 5 // 4)
    for dtype, length, size in product(DTYPES, (77, 130, 512, 1000), HEAD_SIZES):
        one = {"heads": 1, "sequence": length, "head_size": size}
        for form in ({"mask": 1}, {"mask": 2}, {"causal": 1}, {"kv_sequence": 300}):
            yield case(dtype, one | form, length == 130)
        for kv_heads in (1, 2):
            yield case(dtype, {**one, "heads": 6, "kv_heads": kv_heads}, length == 77)
    for dtype, length, size in product(DTYPES, (77, 768, 1536), HEAD_SIZES):
        yield case(dtype, {"heads": 1, "sequence": length, "head_size": size}, length == 77, logits=LOGITS)


def _norm_rope_attention() -> Iterator[CheckCase]:
    def case(dtype: str, sizes: dict[str, int], quick: bool, **more: Any) -> CheckCase:
        return CheckCase("norm_rope_attention", dtype, sizes, quick=quick, **more)

    for i, (dtype, heads, size, length) in enumerate(product(DTYPES, HEADS, HEAD_SIZES, LENGTHS)):
        sizes = {"heads": heads, "sequence": length, "head_size": size, "interleaved": i % 2}
        sizes |= {"text": length // 3} if length > 1 and i // 2 % 2 == 0 else {}
        quick = heads == 1 and length in (1, 77, 130, 512)
        yield case(dtype, sizes, quick, cores=1 + i % 5 // 4)
        if heads == 1:
            yield case(dtype, sizes | {"bounded": 1}, quick and length == 130)
    for dtype, length, size in product(DTYPES, (77, 768, 1536), HEAD_SIZES):
        sizes = {"heads": 1, "sequence": length, "text": length // 3, "head_size": size}
        yield case(dtype, sizes, length == 77, logits=LOGITS)


def simulators(choice: str | None) -> dict[str, Callable[[int], Toolchain]]:
    """What runs the kernels, by name, for a number of cores: "emulator", "nki" or "both"; those available when None.

    Raises InputError for an unknown choice, and for nki where it is not installed.
    """
    known: dict[str, Callable[[int], Toolchain]] = {
        "emulator": lambda cores: Emulator(cores=cores),
        "nki": lambda cores: Simulator(cores=cores),
    }
    if choice not in (None, "both", *known):
        raise InputError(f"unknown simulator {choice!r}; known: emulator, nki, both")
    if choice in ("nki", "both") and not has_nki():
        raise InputError(
            f"--simulator {choice}: nki with its simulator is not installed (AWS's package index, Linux); "
            "choose --simulator emulator"
        )
    names = known if choice == "both" or (choice is None and has_nki()) else [choice or "emulator"]
    return {name: known[name] for name in names}


@dataclass
class _Run:
    """A case with its inputs and its expected outputs."""

    case: CheckCase
    expected: list[Tensor]
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)


def run_case(
    case: CheckCase, tools: Mapping[str, Callable[[int], Toolchain]], provider: str = "builtin", seed: int = 0
) -> list[Result]:
    """Run a case in each of `tools` (as `simulators` returns them) and compare with float64, and the tools with each other.

    Each case has random inputs of its own, which `seed` changes. Raises InputError for an unknown provider.
    """
    launch = launcher(case.kernel, provider).launch
    sizes = sample_inputs.complete(case.kernel, case.sizes)
    options = sample_inputs.options(case.kernel, sizes)
    if lacks_mode(launch, options):
        return [_result(case, "", note=f"{provider} has no such mode", outside=True)]
    try:
        refuse_limits(case.kernel, provider, sizes, DTYPES[case.dtype])
    except InputError as error:
        return [_result(case, "", note=str(error), outside=True)]
    own = zlib.crc32(str(case).encode()) % 2**20 + seed
    arguments = sample_inputs.arguments(
        case.kernel, sizes, DTYPES[case.dtype], device="cpu", seed=own, logits=case.logits
    )
    run = _Run(case, _list(REFERENCES[case.kernel](*arguments)), arguments, options)
    results = [_compared(run, name, launch, make(case.cores)) for name, make in tools.items()]
    if len(run.outputs) == 2:
        second, first = (run.outputs[name] for name in ("nki", "emulator"))
        results.append(_result(case, "nki against emulator", *_worst(second, [t.double() for t in first])))
    return results


def _compared(run: _Run, name: str, launch: Callable[..., Any], tool: Toolchain) -> Result:
    start = perf_counter()
    try:
        with silenced():
            outputs = _list(launch(tool, *run.arguments, **run.options))
    except InputError as error:
        return _result(run.case, name, note=str(error), outside=True)
    except (EmulationError, RuntimeError, ValueError) as error:
        return _result(run.case, name, note=f"{type(error).__name__}: {error}", seconds=perf_counter() - start)
    seconds = perf_counter() - start
    run.outputs[name] = outputs
    wrong = [(o, e) for o, e in zip(outputs, run.expected, strict=True) if o.shape != e.shape]
    if wrong:
        note = f"shape {tuple(wrong[0][0].shape)}, expected {tuple(wrong[0][1].shape)}"
        return _result(run.case, name, note=note, seconds=seconds)
    if not all(bool(o.isfinite().all()) for o in outputs):
        return _result(run.case, name, note="not finite", seconds=seconds)
    return _result(run.case, name, *_worst(outputs, run.expected), seconds=seconds)


def _result(case: CheckCase, simulator: str, error: float = math.nan, cosine: float = math.nan, **more: Any) -> Result:
    tolerance, least_cosine = limits_of(case)
    measured = {"error": error, "cosine": cosine, "tolerance": tolerance, "least_cosine": least_cosine, "seconds": 0.0}
    return Result(str(case), case.kernel, case.dtype, case.logits, simulator, **{**measured, **more})


def _list(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _worst(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, float]:
    """Greatest relative Frobenius error and least cosine of the outputs; an output expected to be all zero must be."""
    pairs = []
    for got, wanted in zip(outputs, expected, strict=True):
        got = got.double()
        size = float(wanted.norm())
        if size == 0:
            pairs.append((math.inf, 0.0) if got.any() else (0.0, 1.0))
            continue
        cosine = float((got * wanted).sum()) / (size * max(float(got.norm()), 1e-300))
        pairs.append((float((got - wanted).norm()) / size, min(cosine, 1.0)))
    return max(p[0] for p in pairs), min(p[1] for p in pairs)
