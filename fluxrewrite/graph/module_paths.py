"""Module paths of nodes, and the numbered block that a path is in."""

from __future__ import annotations

import re
from functools import lru_cache

from torch.fx import Node

__all__ = ["block_path", "module_path"]

_PATH_PART = re.compile(r"\['([^']+)'\]|\.([A-Za-z_0-9]+)|\[(\d+)\]")


def module_path(node: Node) -> str:
    """Path of the module that `node` was traced in, as in `named_modules()`: "transformer_blocks.0.attn"; "" for the model."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    return _plain_path(next(reversed(stack.values()))[0])


@lru_cache(maxsize=4096)
def _plain_path(source: str) -> str:
    head, _, tail = source.partition("]") if source.startswith(("L[", "G[")) else ("", "", source)
    if not head:
        return str(source).removeprefix("L.").strip(".")
    parts = [a or b or c for a, b, c in _PATH_PART.findall(tail)]
    # Dynamo writes the Python expression that reaches a module. These parts of it are no names of modules.
    skipped = {"_modules", "__dict__", "cell_contents", "__closure__", "_orig_mod"}
    return ".".join(p for p in parts if p not in skipped)


def block_path(path: str) -> str:
    """The path up to its first number: "transformer_blocks.3" for "transformer_blocks.3.attn"; "" if it has none."""
    parts = path.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if at is None else ".".join(parts[: at + 1])
