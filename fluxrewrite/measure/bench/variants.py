"""Variants of a model by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...cost.data_files import DataRecord
from ...cost.runs import Setup
from ...dynamo.backend import Backend, backend
from ...errors import InputError
from ...kernel import load_kernels
from ...rewrite.selection import Selection
from ..rendezvous import RendezvousAddress

__all__ = ["DEFAULT_VARIANTS", "Chosen", "Spec", "backend_of", "parse_variants"]

DEFAULT_VARIANTS = "vanilla,qkv,attention,qkv+attention,norm_rope_attention,auto"

_WITHOUT = ("vanilla", "eager")
_POLICIES = ("auto", "measure", "all", "none")


class Chosen(DataRecord):
    """A variant as it was asked for.

    Attributes:
        name: "qkv+attention".
        policy: of the backend; None where fluxrewrite takes no part.
        kernels: words that the backend takes; () for all.
    """

    name: str
    policy: str | None
    kernels: tuple[str, ...] = ()


class Spec(DataRecord):
    """What a worker is asked for: a variant, the file that its last latents go to, and where it meets those of other ranks."""

    setup: Setup
    chosen: Chosen
    latents: str
    meeting: RendezvousAddress | None = None


def parse_variants(text: str) -> tuple[Chosen, ...]:
    """Read "vanilla,qkv+attention,auto".

    Raises InputError: an unknown variant, one that stands twice, or none at all.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"--variants {text!r}: names no variant; {_known()}")
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InputError(f"--variants: {twice!r} stands twice; name each variant once")
    return tuple(_parse(name) for name in names)


def _parse(name: str) -> Chosen:
    if name in _WITHOUT:
        return Chosen(name=name, policy=None)
    if name in _POLICIES:
        return Chosen(name=name, policy=name)
    words = tuple(dict.fromkeys(word.strip() for word in name.split("+")))
    try:
        Selection.of(words)
    except InputError as error:
        raise InputError(f"--variants: unknown variant {name!r} ({error}); {_known()}") from error
    return Chosen(name=name, policy="all", kernels=words)


def _known() -> str:
    kernels = ", ".join(load_kernels())
    return f"known: {', '.join(_WITHOUT + _POLICIES)}, and kernels joined by +: {kernels}"


def backend_of(chosen: Chosen, setup: Setup) -> Backend | None:
    """What rewrites the model in this variant; None where nothing does.

    Strict, for a variant that quietly fell back would have vanilla's times under its own name.

    Raises InputError for what `fluxrewrite.backend` refuses.
    """
    if chosen.policy is None:
        return None
    evidence: Iterable[str | Path] = setup.evidence
    return backend(
        setup.inner,
        chosen.kernels or None,
        chosen.policy,
        strict=True,
        provider=setup.provider,
        execution=setup.execution,
        device=setup.profile,
        evidence=evidence,
    )
