"""One line for every error, in one place."""

import ast

import pytest
import torch
from documented import ROOT
from pydantic import BaseModel, ValidationError

from fluxrewrite.errors import InputError, one_line


class Silent(Exception):
    def __str__(self):
        return ""


CASES = [
    (ValueError("no such size"), "ValueError: no such size", "no such size"),
    (ValueError("  padded \t"), "ValueError: padded", "padded"),
    (RuntimeError("\n \n  first\nsecond\n"), "RuntimeError: first", "first"),
    (RuntimeError("one\r\ntwo"), "RuntimeError: one", "one"),
    (AssertionError(), "AssertionError: no message", "AssertionError"),
    (ValueError(" \n "), "ValueError: no message", "ValueError"),
    (Silent("never shown"), "Silent: no message", "Silent"),
    (KeyError("head_size"), "KeyError: 'head_size'", "'head_size'"),
    (
        OSError(28, "No space left on device"),
        "OSError: [Errno 28] No space left on device",
        "[Errno 28] No space left on device",
    ),
    (
        torch.OutOfMemoryError("CUDA out of memory.\nTried"),
        "OutOfMemoryError: CUDA out of memory.",
        "CUDA out of memory.",
    ),
    (InputError("unknown device 'tpu'"), "InputError: unknown device 'tpu'", "unknown device 'tpu'"),
    (KeyboardInterrupt(), "KeyboardInterrupt: no message", "KeyboardInterrupt"),
]


@pytest.mark.parametrize(("error", "named", "bare"), CASES, ids=lambda v: repr(v))
def test_the_first_line_that_is_not_blank(error, named, bare):
    assert one_line(error) == one_line(error, named=True) == named
    assert one_line(error, named=False) == bare


def test_a_long_message_of_pydantic():
    class Record(BaseModel):
        size: int

    with pytest.raises(ValidationError) as caught:
        Record(size="x")
    assert str(caught.value).count("\n") > 1
    assert one_line(caught.value, named=False) == "1 validation error for Record"


def test_no_file_cuts_an_errors_message_itself():
    """`str(error).splitlines()` and `.partition` are for `fluxrewrite.errors`, which knows of blank lines and empty messages."""
    found = []
    for path in sorted((ROOT / "fluxrewrite").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in ("splitlines", "partition")
                and _text_of_error(node.value)
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert [f.rpartition(":")[0] for f in found] == ["fluxrewrite/errors.py", "fluxrewrite/measure/bench/worker.py"], (
        found
    )


def _text_of_error(node):
    """`str(error)` and `str(error).strip()`, for the names that errors have here."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "strip":
        return _text_of_error(node.func.value)
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str" and node.args
    return bool(called) and isinstance(node.args[0], ast.Name) and node.args[0].id in ("error", "inner", "exc")
