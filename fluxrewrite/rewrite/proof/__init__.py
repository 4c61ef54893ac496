"""Proof before rewriting: each distinct site and what would replace it run on the same random inputs, once."""

from ...errors import InputError
from .cache import Store
from .prover import Prover

__all__ = ["PROOF", "Prover", "Store", "check_proof"]

PROOF = ("numeric", "structural")
"""What a rewrite asks for: that a site was proved on random inputs, or only that it has the structure of one."""


def check_proof(proof: str) -> None:
    """Raise InputError for a name that is none of `PROOF`."""
    if proof not in PROOF:
        raise InputError(f"unknown proof={proof!r}; known: {', '.join(PROOF)}")
