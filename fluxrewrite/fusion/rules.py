"""What a compiler does with each kind of operation, as data: one JSON file per compiler, each rule with its evidence."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import InputError

__all__ = ["DecomposedStep", "Part", "Rules", "known_rules", "load_rules"]

Part = Literal["map", "reduce", "library", "store", "view", "none"]
"""What an operation becomes: a loop over elements, a loop that sums rows up, a library call, stores of its inputs side by side
(cat, stack), nothing (a view), or nothing at all (no tensor)."""


class DecomposedStep(BaseModel):
    """One part of an operation that a compiler takes apart, for `storage` "by_use".

    Attributes:
        name: how later parts refer to it.
        kind: "map" a loop over elements; "reduce" one number for each row of the first of `of`; "dot" a matrix product.
        of: what it computes with: names of earlier parts; arguments of the operation; "others", its tensor operands but the
            first. Missing arguments are left out.
        like: whose sizes the result has; those of the operation's result when empty. Not for "reduce".
        last: size of the last axis instead, as "key.-2": axis -2 of key.
        itemsize: bytes of an element; those of the operation's result when None.
        expensive: not computed twice.
        only_with: an argument of the operation without which this part is left out; its name then means the first of `of`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    kind: Literal["map", "reduce", "dot"]
    of: tuple[str, ...]
    like: str = ""
    last: str = Field("", pattern=r"^$|^\w+\.-?\d+$")
    itemsize: int | None = Field(None, ge=1)
    expensive: bool = False
    only_with: str = ""


class Rules(BaseModel):
    """How one compiler fuses.

    Attributes:
        name: compiler, version and target.
        evidence: where the rules come from, by field or operation.
        assumed: whether no compiler confirms the rules; times that follow from such rules are assumptions too.
        parts: what each operation becomes, by canonical name; several parts follow each other, the last gives the result.
        steps: operations that are taken apart in more detail than `parts` says.
        storage: "as_met" decides for each value as it comes whether it is stored, "by_use" once all its uses are known.
        heavy: operations that are not computed twice.
        outer: a reduction merges with a loop over the elements that it reduces.
        merge: loops over the same elements that share memory become one kernel.
        epilogue: a loop over all elements of a library call's result becomes part of that call.
        contiguous_calls: a kernel call takes contiguous operands only; others are copied first.

    For "as_met":
        inline: loops over elements are computed again inside each consumer rather than stored, up to the limits below.
        reuse_reads: a value with several uses is stored when computing it reads more buffers than this.
        most_reads: a value is stored when computing it reads more buffers than this, however often it is used.
        join: how cat and stack are made: "store" writes each input to its place in a loop of its own, "map" is one loop.

    For "by_use":
        window: reductions of more elements than this go in stages of so many, each from memory to memory.
        own_cat: cat along the last axis to at least so many elements is a loop of its own.
        vector_rows: a product of at most so many rows computes its operands inside; any other takes them from memory.
        whole_operands: what a call takes from memory is all of a buffer; slices and permutations are copied first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    evidence: dict[str, str]
    assumed: bool = False
    parts: dict[str, tuple[Part, ...]]
    steps: dict[str, tuple[DecomposedStep, ...]] = Field(default_factory=dict)
    storage: Literal["as_met", "by_use"] = "as_met"
    heavy: frozenset[str] = frozenset()
    merge: bool = True
    outer: bool = True
    epilogue: bool = False
    contiguous_calls: bool = False
    inline: bool = True
    reuse_reads: int = Field(0, ge=0)
    most_reads: int = Field(8, ge=1)
    join: Literal["store", "map"] = "store"
    window: int | None = Field(None, ge=2)
    own_cat: int | None = Field(None, ge=1)
    vector_rows: int = Field(0, ge=0)
    whole_operands: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Rules:
        if self.steps and self.storage == "as_met":
            raise ValueError("steps need storage 'by_use'")
        return self

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
