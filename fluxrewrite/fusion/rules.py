"""What a compiler does with each kind of operation, as data: one JSON file a compiler, each rule with its evidence."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import InputError

__all__ = ["Part", "Rules", "known_rules", "load_rules"]

Part = Literal["map", "reduce", "library", "store", "view", "none"]
"""What an operation becomes: a loop over elements, a loop that sums rows up, a library call, stores of its inputs side by side
(cat, stack), nothing (a view), or nothing at all (no tensor)."""


class Rules(BaseModel):
    """How one compiler fuses.

    Attributes:
        name: compiler, version and target.
        evidence: where the rules come from, by field or operation.
        parts: what each operation becomes, by canonical name; several parts follow each other, the last gives the result.
        inline: loops over elements are computed again inside each consumer rather than stored, up to the limits below.
        reuse_reads: a value with several uses is stored when computing it reads more buffers than this.
        most_reads: a value is stored when computing it reads more buffers than this, however often it is used.
        heavy: operations that are not computed twice.
        join: how cat and stack are made: "store" writes each input to its place in a loop of its own, "map" is one loop.
        merge: loops over the same elements that share memory become one kernel.
        outer: a reduction merges with a loop over the elements that it reduces.
        contiguous_calls: a kernel call takes contiguous operands only; others are copied first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    evidence: dict[str, str]
    parts: dict[str, tuple[Part, ...]]
    inline: bool = True
    reuse_reads: int = Field(ge=0)
    most_reads: int = Field(ge=1)
    heavy: frozenset[str] = frozenset()
    join: Literal["store", "map"] = "store"
    merge: bool = True
    outer: bool = True
    contiguous_calls: bool = False

    def of(self, op: str) -> tuple[Part, ...]:
        """What an operation becomes; one that the rules do not name is a library call."""
        return self.parts.get(op, ("library",))


def known_rules() -> tuple[str, ...]:
    """Names that `load_rules` knows."""
    folder = files("fluxrewrite.fusion") / "data"
    return tuple(sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")))


def load_rules(name: str) -> Rules:
    """The rules of a compiler by name ("inductor", "xla", "neuronx"), or from a JSON file.

    Raises InputError for an unknown name, and for a file that cannot be read or has wrong fields, naming the field.
    """
    if name in known_rules():
        text = (files("fluxrewrite.fusion") / "data" / f"{name}.json").read_text()
    elif Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise InputError(f"unknown compiler {name!r}; known: {', '.join(known_rules())}, or a JSON file of rules")
    try:
        return Rules.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{name}: {where}: {first['msg']}; see fluxrewrite/fusion/data for files that work") from error
