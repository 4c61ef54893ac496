"""Proofs kept in files for the next compile."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch._inductor.runtime.cache_dir_utils import cache_dir

from ...errors import one_line
from ...site import Proof

__all__ = ["Store"]

log = logging.getLogger("fluxrewrite")


class _ProofFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    schema_: Literal["fluxrewrite.proof/1"] = "fluxrewrite.proof/1"
    key: str
    status: Literal["proved", "failed"]
    error: float | None
    dtype: str
    note: str


class Store:
    """Proofs by key, one file each. A proof that was read or saved also stays in memory.

    Args:
        folder: folder of the files; by default `fluxrewrite` in the folder of Inductor's cache.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = Path(folder) if folder is not None else Path(cache_dir()) / "fluxrewrite"
        self._known: dict[str, Proof] = {}

    def load(self, key: str) -> Proof | None:
        """The proof for a key, or None. A file that cannot be read, or has another key, is ignored with a warning."""
        known = self._known.get(key)
        if known is not None:
            return known
        path = self._path(key)
        try:
            found = _ProofFile.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            why = one_line(error, named=False)
            log.warning("fluxrewrite: %s is not a proof file (%s); the site is proved again", path, why)
            return None
        # Someone may have copied or renamed files. The name alone must not decide what is rewritten.
        if found.key != key:
            log.warning("fluxrewrite: %s is the proof of another site; this one is proved again", path)
            return None
        proof = Proof(found.status, found.error, found.dtype, found.note)
        self._known[key] = proof
        return proof

    def save(self, key: str, proof: Proof) -> None:
        """Keep a proof, proved or failed. If the folder cannot be written to, warn and keep it in memory only."""
        self._known[key] = proof
        # A run may have failed for a reason of this process, such as its memory. The next one tries again.
        if proof.status not in ("proved", "failed"):
            return
        path = self._path(key)
        # Renamed into place: other threads and processes use the same folder and must never read half a file.
        draft = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            content = _ProofFile(key=key, status=proof.status, error=proof.error, dtype=proof.dtype, note=proof.note)
            draft.write_text(content.model_dump_json(indent=1))
            draft.replace(path)
        except OSError as error:
            log.warning("fluxrewrite: proofs are not kept (%s); give a cache_dir that can be written to", error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.proof.json"
