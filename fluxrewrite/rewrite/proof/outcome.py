"""The outcome of a proof for a plan: the site with its proof, and the reasons against replacing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...graph.view import GraphView
from ...kernel import Kernel
from ...site import Code, Proof, Reason, Site
from ..base import Pass
from .sides import NoReplacement

__all__ = ["Prove", "proved", "refuted"]

Prove = Callable[[GraphView, Site, Pass, Kernel | None], Proof]
"""Proves a site and its replacement, by a kernel or inline. `fluxrewrite.rewrite.proof.Prover` is one."""


def proved(
    view: GraphView, site: Site, rewriter: Pass, kernel: Kernel | None, prove: Prove
) -> tuple[Site, tuple[Reason, ...]]:
    """The site with its proof, and the reasons to leave it alone; none if it was proved."""
    where = site.outputs[0].name
    try:
        proof = prove(view, site, rewriter, kernel)
    except NoReplacement as error:
        return replace(site, proof=Proof("unproved", note=str(error))), (Reason(Code.REPLACEMENT, str(error), where),)
    site = replace(site, proof=proof)
    if proof.status == "failed":
        difference = proof.note or f"it is off by {proof.error:.2g} of the largest value"
        dtype = "float64" if proof.dtype == "float64" else str(site.dtype).removeprefix("torch.")
        message = f"on random inputs the replacement differs: {difference} ({dtype})"
        return site, (Reason(Code.NOT_EQUIVALENT, message, where),)
    if proof.status == "unproved":
        message = f"it cannot be run for its proof: {proof.note}; proof='structural' relies on its structure alone"
        return site, (Reason(Code.UNPROVED, message, where),)
    return site, ()


def refuted(site: Site) -> bool:
    """Whether a proof was attempted and did not succeed."""
    return site.proof is not None and site.proof.status != "proved"
