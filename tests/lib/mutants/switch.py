"""What every guard of an instrumented tree goes through; copied to its top as `_guard_switch`.

The guard of the number `active` is disabled: what it found is computed and not listened to. Which guards made code refuse is
kept by the test that ran.
"""

from __future__ import annotations

import os
from typing import Any

active = int(os.environ.get("FLUXREWRITE_MUTANT", "0"))
broken = ""
"""File that raises when it is imported."""
test = ""
fired: dict[int, set[str]] = {}
arrived: dict[str, str] = {}


def at(file: str, path: str) -> None:
    """Called on import of each file, which lies at `path`."""
    if file == broken:
        raise ImportError(f"{file} is broken on purpose")
    arrived[file] = path


def off(number: int, found: Any) -> Any:
    """A condition under which code refuses."""
    if found:
        if number == active:
            return None
        fired.setdefault(number, set()).add(test)
    return found


def on(number: int, found: Any) -> Any:
    """A condition without which code refuses."""
    if not found:
        if number == active:
            return True
        fired.setdefault(number, set()).add(test)
    return found
