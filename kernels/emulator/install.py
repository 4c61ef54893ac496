"""Stand-ins for the ``nki`` package in ``sys.modules``, so that foreign kernel sources import the emulator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from . import enums, isa, language
from .dtypes import DType
from .run import jit, simulate


def _module(name: str, **content: object) -> ModuleType:
    module = ModuleType(name, "Stand-in made by fluxrewrite.kernels.emulator.")
    module.__spec__ = ModuleSpec(name, None)  # `importlib.util.find_spec` refuses a loaded module without one
    module.__dict__.update(content)
    return module


def _simulate(kernel: Any) -> Callable[..., Any]:
    """Return a function that runs ``kernel`` and returns its outputs, as ``nki.simulate`` does."""
    return lambda *args, **kwargs: simulate(kernel)(*args, **kwargs).outputs


def _stand_ins() -> dict[str, ModuleType]:
    constants = _module("nki.isa.constants", **{k: v for k, v in vars(enums).items() if isinstance(v, type)})
    # ``import nki.isa.constants`` looks the name up on the package's module, so the emulator's own module is not used.
    isa_module = _module("nki.isa", **{k: getattr(isa, k) for k in isa.__all__}, constants=constants)
    isa_module.__dict__["__getattr__"] = isa.__getattr__
    isa_module.__path__ = []
    names = {k: getattr(language, k) for k in language.__all__}
    language_module = _module("nki.language", **names, bool=language.bool_)
    nki = _module("nki", jit=jit, simulate=_simulate, dtype=DType, isa=isa_module, language=language_module)
    nki.__path__ = []
    modules = (nki, isa_module, language_module, constants)
    return {m.__name__: m for m in modules}


@contextmanager
def installed() -> Iterator[ModuleType]:
    """Put stand-ins for ``nki``, ``nki.language`` and ``nki.isa`` into ``sys.modules`` for the duration.

    Yields the stand-in ``nki``. Afterwards they are gone, and so is every package imported inside of which a module
    holds one of them, also as an attribute of a package that was there before; other new imports stay.
    """
    before = dict(sys.modules)
    for name in [n for n in sys.modules if n == "nki" or n.startswith("nki.")]:
        del sys.modules[name]
    stand_ins = _stand_ins()
    sys.modules.update(stand_ins)
    try:
        yield stand_ins["nki"]
    finally:
        new = {n: m for n, m in sys.modules.items() if n not in before}
        bound = {n.partition(".")[0] for n, m in new.items() if _binds(m, stand_ins)}
        for name in [n for n in new if n.partition(".")[0] in bound]:
            _forget(name, before)
        for name in stand_ins:
            sys.modules.pop(name, None)
        sys.modules.update({n: m for n, m in before.items() if n not in sys.modules})


def _forget(name: str, before: dict[str, ModuleType]) -> None:
    """Take a module out of `sys.modules` and out of its package: `from package import module` would find it there."""
    module = sys.modules.pop(name)
    package, _, attribute = name.rpartition(".")
    if package in before and vars(before[package]).get(attribute) is module:
        delattr(before[package], attribute)


def _binds(module: ModuleType, stand_ins: dict[str, ModuleType]) -> bool:
    made = {id(m) for m in stand_ins.values()}
    return any(id(value) in made for value in list(vars(module).values()))
