"""Which kinds and forms of site may be rewritten, and by whose kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points

from ..errors import InputError
from ..kernel import Kernel, load_kernels, load_plugins
from ..provider.registry import provided
from ..site import Site
from .base import Pass

__all__ = ["Selection", "kinds"]

_PASSES = "fluxrewrite.passes"


def kinds() -> tuple[str, ...]:
    """All kinds of site that passes are installed for."""
    return tuple(sorted(e.name for e in entry_points(group=_PASSES)))


@dataclass(frozen=True)
class Selection:
    """Which kinds and forms of site may be rewritten: `kernels=("qkv:triple", "attention")`.

    Attributes:
        passes: the passes in use, by kind.
        kernels: the kernels in use, by name.
        forms: for a kind, the forms selected; all forms where a kind is missing.
        provider: whose kernels: "builtin", "nkilib@2.29", or "reference" for the ops' own bodies without further limits.
    """

    passes: Mapping[str, Pass]
    kernels: Mapping[str, Kernel]
    forms: Mapping[str, frozenset[str]]
    provider: str = "builtin"

    @classmethod
    def of(
        cls,
        kernels: str | Iterable[str] | None = None,
        provider: str = "builtin",
        execution: str = "reference",
    ) -> Selection:
        """Read `kernels`: None for all, a comma-separated text, or kinds with an optional `:form`.

        Raises InputError for an unknown kind, form, provider or execution, with the known ones.
        """
        if kernels is None:
            words = None
        elif isinstance(kernels, str):
            words = [w.strip() for w in kernels.split(",") if w.strip()]
        else:
            words = list(kernels)
        named = None if words is None else tuple(dict.fromkeys(w.partition(":")[0] for w in words))
        if named == ():
            raise InputError("no kernel named; leave the option out for all, or use policy 'none' for no rewrite")
        passes = load_plugins(_PASSES, named, _new_pass)
        forms: dict[str, set[str]] = {}
        for word in words or ():
            kind, colon, form = word.partition(":")
            if not colon:
                forms[kind] = set(passes[kind].forms)
            elif form in passes[kind].forms:
                forms.setdefault(kind, set()).add(form)
            else:
                raise InputError(f"unknown form {form!r} of {kind!r}; known: {', '.join(passes[kind].forms)}")
        offered = provided(load_kernels().values(), provider, execution)
        return cls(passes, offered, {k: frozenset(v) for k, v in forms.items()}, provider)

    def has(self, site: Site) -> bool:
        """Whether the form of a site is among those selected."""
        forms = self.forms.get(site.kind)
        return forms is None or site.form in forms

    def names(self) -> tuple[str, ...]:
        """The selection as words, in order: what `of` would take."""
        words: list[str] = []
        for kind in self.passes:
            forms = self.forms.get(kind)
            whole = forms is None or forms == set(self.passes[kind].forms)
            words += [kind] if whole else [f"{kind}:{form}" for form in sorted(forms or ())]
        return tuple(words)


def _new_pass(cls: type[Pass]) -> Pass:
    """A pass that has what a pass needs, or AttributeError."""
    made = cls()
    for name in ("kind", "kernel", "forms", "looks_for", "find", "emit"):
        getattr(made, name)
    return made
