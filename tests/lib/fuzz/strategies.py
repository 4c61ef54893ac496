"""Cases drawn by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from .case import MOST, RESPELLINGS, TRIES, Case
from .forms import FORMS
from .programs import KINDS
from .wrong import WRONG

__all__ = ["equivalent", "wrong"]

_PROGRAMS = tuple(f"{name}/{KINDS[(i + k) % len(KINDS)]}" for i, name in enumerate(FORMS) for k in range(2))
"""Two kinds of sizes and dtypes of each form: tracing takes its time."""
_numbers = st.integers(0, 2**20)
_respellings = st.tuples(st.sampled_from(sorted(RESPELLINGS)), _numbers)
_changes = st.tuples(st.sampled_from(sorted(WRONG)), _numbers)
_programs = st.sampled_from(_PROGRAMS)

equivalent = st.builds(
    lambda program, steps, whole: Case(program, tuple(steps), whole=whole),
    _programs,
    st.lists(_respellings, min_size=2, max_size=MOST),
    st.booleans(),
)
wrong = st.builds(
    lambda program, steps, changes, before, whole: Case(
        program, tuple(steps), tuple(changes), min(before, len(steps)), whole
    ),
    _programs,
    st.lists(_respellings, max_size=MOST // 2),
    st.lists(_changes, min_size=TRIES, max_size=TRIES),
    st.integers(0, MOST),
    st.booleans(),
)
