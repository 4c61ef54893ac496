"""The hooks of this project's providers: what a call costs under the emulator, and the cases that kernels are checked by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fluxrewrite.errors import InputError
from fluxrewrite.provider.check_suite import Suite
from fluxrewrite.provider.profile import Profiled, ProfileRequest

from . import sample_inputs
from .call_cost import model_call

__all__ = ["profile", "sizes_of", "suite"]


def profile(provider: str, request: ProfileRequest) -> Profiled:
    """The modelled cost of one call of a kernel of `provider`. Raises InputError as `model_call` does."""
    sizes = sizes_of(request)
    return model_call(
        request.kernel, sizes, request.dtype, provider=provider, device=request.device, cores=request.cores, trace=True
    )


def suite() -> Suite:
    """The correctness matrix, `kernels.harness.cases`."""
    from . import cases  # only checks need the references and simulators that it imports

    return cases


def sizes_of(request: ProfileRequest) -> dict[str, int]:
    """All sizes of the call. For a site, its form, details and operands give the sizes that `ProfileRequest.sizes` lacks.

    Raises InputError for unknown names, sizes that do not fit each other, and symbolic ones.
    """
    symbolic = [f"{name} {size}" for name, size in request.sizes.items() if not isinstance(size, int)]
    if symbolic:
        raise InputError(f"{request.kernel}: {', '.join(symbolic)}: the emulator needs sizes that are numbers")
    if not request.form:
        return sample_inputs.complete(request.kernel, request.sizes)
    known = sample_inputs.sample(request.kernel).defaults
    given = {name: size for name, size in request.sizes.items() if name in known}
    return sample_inputs.complete(request.kernel, {**given, **_OF_SITE[request.kernel](request)})


def _shapes(request: ProfileRequest) -> list[tuple[int, ...]]:
    return [shape for shape, _ in request.operands]


def _qkv(request: ProfileRequest) -> Mapping[str, int]:
    """Operands are the input, then weights, which have two axes, then biases, which have one."""
    return {"packed": int(request.form == "packed"), "bias": int(any(len(s) == 1 for s in _shapes(request)))}


def _rope(request: ProfileRequest) -> Mapping[str, int]:
    """The width of the tables is that of the operand: [.., D / 2] for a complex one, D or D / 2 for real ones."""
    width = _shapes(request)[1][-1]
    axis = int(request.details.get("axis", 1))
    turned = bool(request.details.get("turned"))
    return {
        "heads": request.sizes.get("heads", 1),
        "interleaved": int(bool(request.details.get("interleaved", request.form != "rotate_half"))),
        "sequence_dim": 3 - axis if turned else axis,
        "rotary": width,
    }


def _attention(request: ProfileRequest) -> Mapping[str, int]:
    masks = request.operands[3:]
    return {
        "bshd": int(request.details.get("layout") == "bshd"),
        "causal": int(bool(request.details.get("causal"))),
        "mask": (2 if masks[0][1] == "bool" else 1) if masks else 0,
    }


def _norm_rope_attention(request: ProfileRequest) -> Mapping[str, int]:
    """Of two streams, the first is the text."""
    interleaved = int(bool(request.details.get("interleaved", True)))
    return {"interleaved": interleaved, "text": _shapes(request)[0][1] if request.form == "joint" else 0}


_OF_SITE: Mapping[str, Callable[[ProfileRequest], Mapping[str, Any]]] = {
    "qkv": _qkv,
    "rope": _rope,
    "attention": _attention,
    "norm_rope_attention": _norm_rope_attention,
}
