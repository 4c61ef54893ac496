"""Proof before rewriting: each distinct site and its replacement run once on the same random inputs."""

from ...errors import InputError
from .cache import Store
from .prover import Prover

__all__ = ["PROOF", "Prover", "Store", "check_proof"]

PROOF = ("numeric", "structural")
"""What a rewrite requires of a site: proved on random inputs ("numeric"), or matched by its structure only ("structural")."""


def check_proof(proof: str) -> None:
    """Raise InputError unless `proof` is one of `PROOF`."""
    if proof not in PROOF:
        raise InputError(f"unknown proof={proof!r}; known: {', '.join(PROOF)}")
