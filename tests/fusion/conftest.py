"""An op that another package brings as a kernel."""

import sys
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import pytest
import torch

from fluxrewrite import kernel


@torch.library.custom_op("fusiontest::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@opaque.register_fake
def _(x):
    return torch.empty(x.shape, dtype=x.dtype)


@pytest.fixture
def opaque_kernel(monkeypatch):
    """The op `fusiontest::opaque` as an installed kernel."""
    module = ModuleType("kernel_of_a_test")
    module.KERNEL = kernel.Kernel("opaque", torch.ops.fusiontest.opaque.default, (), "a copy")
    entry = EntryPoint("opaque", f"{module.__name__}:KERNEL", "fluxrewrite.kernels")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(
        kernel,
        "entry_points",
        lambda group: [*entry_points(group=group), *([entry] if group == entry.group else [])],
    )
    return module.KERNEL
