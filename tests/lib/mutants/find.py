"""Guards in a source, and the source with a switch at each. `tools/mutate_guards.py` says what a guard is."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Guard", "guards_of", "instrumented"]

REFUSALS = frozenset({"miss", "_miss", "Miss", "Reason", "Refusal", "Unfit", "fail"})
"""Calls that make a refusal."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPES = (*_FUNCTIONS, ast.ClassDef, ast.Lambda)
_Span = tuple[int, int, int, int]


@dataclass(frozen=True)
class Guard:
    """One condition: the code goes on only where it is `needed`; disabled, it is taken to be that.

    `key` tells it from all others of its file and does not change with lines above it; `span` is the first line and column,
    and the last ones, in bytes.
    """

    file: str
    function: str
    text: str
    needed: bool
    key: str
    span: _Span

    @property
    def line(self) -> int:
        return self.span[0]


def guards_of(source: str, file: str) -> list[Guard]:
    """All guards of a source, in order."""
    found: dict[_Span, tuple[str, ast.expr, bool]] = {}
    for name, function in _functions(ast.parse(source), ""):
        for atom, needed in _Function(function).atoms():
            span = (atom.lineno, atom.col_offset, atom.end_lineno or 0, atom.end_col_offset or 0)
            found.setdefault(span, (name, atom, needed))
    times: Counter[str] = Counter()
    guards = []
    for span, (name, atom, needed) in sorted(found.items(), key=lambda item: (item[0][:2], -item[0][2], -item[0][3])):
        text = " ".join((ast.get_source_segment(source, atom) or "").split())
        key = f"{name}: {text}"
        times[key] += 1
        key += f" #{times[key]}" if times[key] > 1 else ""
        guards.append(Guard(file, name, text, needed, key, span))
    return guards


def instrumented(source: str, file: str, numbered: dict[int, Guard]) -> str:
    """The source with every guard given to the switch under its number, on the same lines."""
    edits: list[tuple[int, int, tuple[int, int], str]] = []
    for number, guard in numbered.items():
        row, column, last_row, last_column = guard.span
        size = (last_row - row) * 100_000 + last_column - column
        edits.append((row, column, (1, -size), f"_guards_.{'on' if guard.needed else 'off'}({number}, "))
        edits.append((last_row, last_column, (0, size), ")"))
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    for row, column, _, text in sorted(edits, reverse=True):
        line = lines[row - 1]
        lines[row - 1] = line[:column] + text.encode() + line[column:]
    return _with_import(b"".join(lines).decode(), f"import _guard_switch as _guards_; _guards_.at({file!r}, __file__)")


def _with_import(source: str, text: str) -> str:
    last = None
    for number, node in enumerate(ast.parse(source).body):
        docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            break
        last = node
    if last is None:
        return f"{text}\n{source}"
    lines = source.splitlines(keepends=True)
    row = (last.end_lineno or 1) - 1
    line, column = lines[row].encode(), last.end_col_offset or 0
    lines[row] = f"{line[:column].decode()}; {text}{line[column:].decode()}"
    return "".join(lines)


def _functions(node: ast.AST, path: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, (*_FUNCTIONS, ast.ClassDef))
        name = f"{path}.{child.name}".strip(".") if named else path  # type: ignore[attr-defined]
        if isinstance(child, _FUNCTIONS):
            yield name, child
        yield from _functions(child, name)


class _Function:
    """The guards of one function, without those of functions in it."""

    def __init__(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.node = node
        self.own = list(_own(node.body))
        self.values: dict[str, list[ast.expr]] = {}
        for statement in self.own:
            if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                target = statement.targets[0]
                if isinstance(target, ast.Name):
                    self.values.setdefault(target.id, []).append(statement.value)
        yields = any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in self.own)
        self.ends_in_refusal = yields or _refuses(node.body[-1])
        self.answers_bool = isinstance(node.returns, ast.Name) and node.returns.id == "bool"

    def atoms(self) -> Iterator[tuple[ast.expr, bool]]:
        for node in self.own:
            for condition, needed in self._conditions(node):
                yield from self._parts(condition, needed, frozenset())

    def _conditions(self, node: ast.AST) -> Iterator[tuple[ast.expr, bool]]:
        """Conditions that `node` is a guard by, and what each must be to go on."""
        match node:
            case ast.If(test=test, body=body):
                if _refuses(body[-1], test):
                    yield test, False
                elif self.ends_in_refusal and any(isinstance(n, (ast.Return, ast.Yield)) for n in _own(body)):
                    yield test, True
            case ast.While(test=test) if not isinstance(test, ast.Name):
                yield test, True
            case ast.match_case(guard=ast.expr() as test):
                yield test, True
            case ast.IfExp(test=test, body=body, orelse=other) if _nothing(body) or _nothing(other):
                yield test, _nothing(other)
            case ast.Return(value=ast.BoolOp(op=ast.Or(), values=[*first, last])) if _refusal(last):
                yield from ((value, True) for value in first)
            case ast.Return(value=ast.BoolOp() | ast.Call() as value) if self.answers_bool:
                if isinstance(value, ast.BoolOp) or _quantified(value) is not None:
                    yield value, True

    def _parts(self, test: ast.expr, needed: bool, known: frozenset[str]) -> Iterator[tuple[ast.expr, bool]]:
        """The parts of a condition that refuse on their own; where they do so together only, these together and parts of them."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            yield from self._parts(test.operand, not needed, known)
        elif isinstance(test, ast.BoolOp):
            alone = isinstance(test.op, ast.And) == needed
            if not alone:
                yield test, needed
            for value in test.values:
                parts = list(self._parts(value, needed, known))
                yield from parts if alone or len(parts) > 1 else ()
        elif (each := _quantified(test)) is not None and each[0] == ("all" if needed else "any"):
            yield from self._parts(each[1], needed, known)
        else:
            named = self._named(test, needed)
            inner = [
                p for v in self.values.get(named, ()) if named not in known for p in self._of(v, needed, named, known)
            ]
            yield from inner or [(test, needed)]

    def _of(self, value: ast.expr, needed: bool, name: str, known: frozenset[str]) -> list[tuple[ast.expr, bool]]:
        splits = isinstance(value, (ast.BoolOp, ast.UnaryOp)) or _quantified(value) is not None
        return list(self._parts(value, needed, known | {name})) if splits else []

    def _named(self, test: ast.expr, needed: bool) -> str:
        """The local that a condition is, or of which it says that a refusal is in it."""
        if isinstance(test, ast.Name):
            return test.id
        return _passed_on(test) if not needed else ""


def _own(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Everything in statements, without functions and classes in them, nor what f-strings show."""
    pending: list[ast.AST] = [*body]
    while pending:
        node = pending.pop(0)
        yield node
        if not isinstance(node, ast.JoinedStr):
            pending[:0] = [n for n in ast.iter_child_nodes(node) if not isinstance(n, _SCOPES)]


def _refuses(statement: ast.stmt, test: ast.expr | None = None) -> bool:
    if isinstance(statement, (ast.Continue, ast.Break, ast.Raise)):
        return True
    if not isinstance(statement, ast.Return):
        return False
    value = statement.value
    if isinstance(value, ast.Name) and test is not None:
        return value.id in (_passed_on(test), _of_class(test))
    return value is None or _refusal(value)


def _refusal(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        name = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
        return name in REFUSALS
    return _nothing(value) or isinstance(value, ast.JoinedStr)


def _nothing(value: ast.expr) -> bool:
    if isinstance(value, ast.Constant):
        return value.value is None or value.value is False
    return isinstance(value, (ast.Tuple, ast.List)) and not value.elts


def _passed_on(test: ast.expr) -> str:
    """x of `x is not None`: a refusal that was made elsewhere."""
    match test:
        case ast.Compare(left=ast.Name(id=name), ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return name
    return ""


def _of_class(test: ast.expr) -> str:
    """x of `isinstance(x, Miss)`."""
    match test:
        case ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), _]):
            return name
    return ""


def _quantified(value: ast.expr) -> tuple[str, ast.expr] | None:
    """("all" or "any", what it says of each) of a generator."""
    match value:
        case ast.Call(func=ast.Name(id="all" | "any" as name), args=[ast.GeneratorExp(elt=each)]):
            return name, each
    return None
