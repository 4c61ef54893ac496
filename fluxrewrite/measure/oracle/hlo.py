"""A parser for optimised HLO in text form, which does not need XLA.

`--xla_dump_hlo_as_text` writes the text as `*after_optimizations.txt`:

    %name = f32[2,3]{1,0} opcode(%operand, ...), attribute=..., metadata={op_name="..."}
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from ...errors import InputError

__all__ = ["Computation", "HloInstruction", "Module", "parse"]

_BITS = {
    "pred": 8, "token": 0, "opaque": 0,
    "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f4e2m1fn": 4, "f8e8m0fnu": 8, "f8e3m4": 8, "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3b11fnuz": 8, "f8e4m3fnuz": 8,
    "f8e5m2": 8, "f8e5m2fnuz": 8, "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
"""Bits of an element by the name of its type (xla/primitive_util.h; pred is stored as a byte)."""

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_OPCODE = re.compile(r" ?([a-z][\w\-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_INDEX = re.compile(r"\bindex=(\d+)")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclass(frozen=True)
class HloInstruction:
    """One instruction.

    Attributes:
        name: unique in its computation.
        opcode: HLO's name of the operation, such as "fusion", "dot", "get-tuple-element".
        sizes: bytes of each array of the result, which has several if it is a tuple.
        operands: names of the operands, in order.
        calls: names of the computations that it calls.
        op_name: `op_name` of its metadata; "" if it has none.
        target: target of a custom call; "" for other instructions.
        index: element of a get-tuple-element, or number of a parameter; 0 for other instructions.
    """

    name: str
    opcode: str
    sizes: tuple[int, ...]
    operands: tuple[str, ...]
    calls: tuple[str, ...] = ()
    op_name: str = ""
    target: str = ""
    index: int = 0


@dataclass(frozen=True)
class Computation:
    """The instructions of one computation in the order of the text, which is the schedule if the module is scheduled."""

    name: str
    instructions: tuple[HloInstruction, ...]

    @cached_property
    def by_name(self) -> Mapping[str, HloInstruction]:
        """The instructions by name."""
        return {i.name: i for i in self.instructions}

    @cached_property
    def parameters(self) -> Mapping[int, HloInstruction]:
        """The parameters by number."""
        return {i.index: i for i in self.instructions if i.opcode == "parameter"}

    @cached_property
    def users(self) -> Mapping[str, tuple[HloInstruction, ...]]:
        """The instructions that use the result of an instruction, by the name of that instruction."""
        found: dict[str, list[HloInstruction]] = {i.name: [] for i in self.instructions}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                if operand in found:
                    found[operand].append(instruction)
        return {name: tuple(users) for name, users in found.items()}


@dataclass(frozen=True)
class Module:
    """One HLO module: its computations by name, and the entry computation."""

    name: str
    computations: Mapping[str, Computation]
    entry: Computation

    def inside(self, instruction: HloInstruction) -> Iterator[HloInstruction]:
        """All instructions of the computations that an instruction calls, and of those that they call."""
        for name in instruction.calls:
            for inner in self.computations[name].instructions:
                yield inner
                yield from self.inside(inner)


def parse(text: str) -> Module:
    """Parse one module.

    Raises InputError when the text is not an HLO module, has no entry computation, or has an element type of unknown size.
    """
    lines = text.splitlines()
    title = lines[0].split(",")[0].split() if lines else []
    if len(title) != 2 or title[0] != "HloModule":
        raise InputError("not an HLO module: the text does not begin with 'HloModule NAME'; give an HLO text dump")
    found: dict[str, Computation] = {}
    entry = ""
    body: list[HloInstruction] | None = None
    for line in lines[1:]:
        header = _HEADER.match(line)
        if header:
            entry, name, body = (header[2] if header[1] else entry), header[2], []
        elif line.startswith("}") and body is not None:
            found[name], body = Computation(name, tuple(body)), None
        elif body is not None and _NAME.match(line):
            body.append(_instruction(line))
    if entry not in found:
        raise InputError(
            f"HLO module {title[1]} has no complete ENTRY computation: the dump was cut off; write it again"
        )
    return Module(title[1], found, found[entry])


def _instruction(line: str) -> HloInstruction:
    line = _COMMENT.sub("", line)
    name = _NAME.match(line)
    assert name is not None
    start = name.end()
    end = _closing(line, start) if line[start] == "(" else start
    opcode = _OPCODE.search(line, end)
    if opcode is None:
        raise InputError(f"HLO instruction {name[2]} has no opcode: {line.strip()[:80]!r}; give an HLO text dump")
    close = _closing(line, opcode.end() - 1)
    inside, rest = line[opcode.end() : close], line[close + 1 :]
    called = [c for group in _CALLED.findall(rest) for c in _OPERAND.findall(group)]
    op_name, target = _OP_NAME.search(rest), _TARGET.search(rest)
    return HloInstruction(
        name=name[2],
        opcode=opcode[1],
        sizes=tuple(_size(*array) for array in _ARRAY.findall(line[start : opcode.start()])),
        operands=() if opcode[1] in ("constant", "parameter") else tuple(_OPERAND.findall(inside)),
        calls=tuple(called),
        op_name=op_name[1] if op_name else "",
        target=target[1] if target else "",
        index=_index(opcode[1], inside, rest),
    )


def _index(opcode: str, inside: str, rest: str) -> int:
    if opcode == "parameter":
        return int(inside)
    found = _INDEX.search(rest) if opcode == "get-tuple-element" else None
    return int(found[1]) if found else 0


def _closing(line: str, start: int) -> int:
    """Position of the bracket that closes the one at `start`. Brackets in quoted text do not count."""
    depth, quoted = 0, False
    for position in range(start, len(line)):
        character = line[position]
        if character == '"' and line[position - 1] != "\\":
            quoted = not quoted
        elif not quoted and character in "()":
            depth += 1 if character == "(" else -1
            if not depth:
                return position
    raise InputError(
        f"HLO line without its closing bracket: {line.strip()[:80]!r}; the dump was cut off; write it again"
    )


def _size(dtype: str, dims: str) -> int:
    if dtype not in _BITS:
        raise InputError(f"unknown HLO element type {dtype!r}; add its size to fluxrewrite/measure/oracle/hlo.py")
    return math.ceil(math.prod(int(d) for d in dims.split(",") if d) * _BITS[dtype] / 8)
