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


def profile(provider: str, asked: ProfileRequest) -> Profiled:
    """What the emulator says of one call of a kernel of `provider`. Raises InputError as `modelled.model_call` does."""
    sizes = sizes_of(asked)
    return model_call(
        asked.kernel, sizes, asked.dtype, provider=provider, device=asked.device, cores=asked.cores, trace=True
    )


def suite() -> Suite:
    """The correctness matrix, `kernels.matrix`."""
    from . import cases  # references and simulators are for those who check

    return cases


def sizes_of(asked: ProfileRequest) -> dict[str, int]:
    """All sizes of the call. Those of a site say with its form, details and operands what else the sample needs to know.

    Raises InputError for unknown names, sizes that do not fit each other, and symbolic ones.
    """
    symbolic = [f"{name} {size}" for name, size in asked.sizes.items() if not isinstance(size, int)]
    if symbolic:
        raise InputError(f"{asked.kernel}: {', '.join(symbolic)}: the emulator needs sizes that are numbers")
    if not asked.form:
        return sample_inputs.complete(asked.kernel, asked.sizes)
    known = sample_inputs.sample(asked.kernel).defaults
    given = {name: size for name, size in asked.sizes.items() if name in known}
    return sample_inputs.complete(asked.kernel, {**given, **_OF_SITE[asked.kernel](asked)})


def _shapes(asked: ProfileRequest) -> list[tuple[int, ...]]:
    return [shape for shape, _ in asked.operands]


def _qkv(asked: ProfileRequest) -> Mapping[str, int]:
    """Operands are the input, then weights, which have two axes, then biases, which have one."""
    return {"packed": int(asked.form == "packed"), "bias": int(any(len(s) == 1 for s in _shapes(asked)))}


def _rope(asked: ProfileRequest) -> Mapping[str, int]:
    """A complex table is one operand [.., D / 2] whose parts turn the pairs; real ones are as wide as they are."""
    width = _shapes(asked)[1][-1]
    axis = int(asked.details.get("axis", 1))
    turned = bool(asked.details.get("turned"))
    return {
        "heads": asked.sizes.get("heads", 1),
        "interleaved": int(bool(asked.details.get("interleaved", asked.form != "rotate_half"))),
        "sequence_dim": 3 - axis if turned else axis,
        "rotary": width,
    }


def _attention(asked: ProfileRequest) -> Mapping[str, int]:
    masks = asked.operands[3:]
    return {
        "bshd": int(asked.details.get("layout") == "bshd"),
        "causal": int(bool(asked.details.get("causal"))),
        "mask": (2 if masks[0][1] == "bool" else 1) if masks else 0,
    }


def _norm_rope_attention(asked: ProfileRequest) -> Mapping[str, int]:
    """The first stream of two is the text."""
    interleaved = int(bool(asked.details.get("interleaved", True)))
    return {"interleaved": interleaved, "text": _shapes(asked)[0][1] if asked.form == "joint" else 0}


_OF_SITE: Mapping[str, Callable[[ProfileRequest], Mapping[str, Any]]] = {
    "qkv": _qkv,
    "rope": _rope,
    "attention": _attention,
    "norm_rope_attention": _norm_rope_attention,
}
