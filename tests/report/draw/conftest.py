"""Reports to draw: of the real FLUX.2-klein-4B, and small odd ones."""

import pytest
import torch
import torch.nn.functional as F

import fluxrewrite
from fluxrewrite import Options
from fluxrewrite.analysis import inspect_spec
from fluxrewrite.models import Shapes, find_model

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="session")
def klein():
    pytest.importorskip("diffusers")
    return inspect_spec(find_model("flux2-klein-4b"), Shapes(256, 512, 1))


class Attend(torch.nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


class Evil(torch.nn.Module):
    """A model whose module has a name that is markup."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Module() for _ in range(2)])
        for block in self.blocks:
            block.add_module(EVIL, Attend())

    def forward(self, x):
        for block in self.blocks:
            x = getattr(block, EVIL)(x.exp() @ x.mT @ x)
        return x.relu()


@pytest.fixture
def evil():
    report = fluxrewrite.inspect(Evil(), x=torch.randn(1, 2, 4, 8), options=Options(kernels="attention"))
    name = report.model.model_copy(update={"name": f"{EVIL}\"'&"})
    return report.model_copy(update={"model": name})


@pytest.fixture
def of():
    """`of(fn, **options)`: the report on a function of four-dimensional heads."""

    def run(fn, size=16, **options):
        return fluxrewrite.inspect(fn, x=torch.randn(1, 2, 8, size), options=Options(**options))

    return run
