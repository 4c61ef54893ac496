"""Proof before rewriting: each distinct site and what would replace it run on the same random inputs, once."""

from ...errors import InputError
from .cache import Store
from .prover import Prover

__all__ = ["VERIFY", "Prover", "Store", "check_verify"]

VERIFY = ("numeric", "structural")
"""What a rewrite asks for: that a site was proved on random inputs, or only that it has the structure of one."""


def check_verify(verify: str) -> None:
    """Raise InputError for a name that is none of `VERIFY`."""
    if verify not in VERIFY:
        raise InputError(f"unknown verify={verify!r}; known: {', '.join(VERIFY)}")
