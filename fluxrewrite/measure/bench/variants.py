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

__all__ = ["Chosen", "Spec", "backend_of", "parse_variants"]

_WITHOUT = ("vanilla", "eager")
_POLICIES = ("auto", "measure", "all", "none")


class Chosen(DataRecord):
    """A variant that was chosen on the command line.

    Attributes:
        name: as given, such as "qkv+attention".
        policy: of the backend; None if fluxrewrite takes no part.
        kernels: names of kernels as the backend takes them; () for all.
    """

    name: str
    policy: str | None
    kernels: tuple[str, ...] = ()


class Spec(DataRecord):
    """What a worker has to do.

    Attributes:
        setup: the model, and how it runs.
        chosen: the variant.
        latents: path of the file that its last latents are written to.
        meeting: where it meets the workers of the other ranks; None if there is a single process.
    """

    setup: Setup
    chosen: Chosen
    latents: str
    meeting: RendezvousAddress | None = None


def parse_variants(text: str) -> tuple[Chosen, ...]:
    """Parse a comma-separated list of variants, such as "vanilla,qkv+attention,auto".

    Raises InputError for an unknown or repeated variant, and for an empty list.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"--variants {text!r}: names no variant; {_known()}")
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise InputError(f"--variants: {twice!r} is listed twice; list each variant once")
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
    """The backend that rewrites the model in this variant; None if fluxrewrite takes no part.

    It is strict: a variant that quietly fell back to the original model would report vanilla's times under its own name.

    Raises InputError as `fluxrewrite.backend` does.
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
