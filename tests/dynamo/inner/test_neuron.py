"""Ops for TorchNeuron, as far as they need none; the rest is in `tests/neuron`."""

import pytest
import torch

import fluxrewrite
from fluxrewrite.dynamo.inner import neuron
from fluxrewrite.errors import InputError
from fluxrewrite.kernel import Kernel


def test_an_argument_that_no_custom_op_takes(monkeypatch):
    """A third party's op; TorchNeuron makes schemas from annotations, and these know no devices."""
    torch.library.define("fluxrewrite_test::odd", "(Tensor x, Device where) -> Tensor")
    odd = Kernel("odd", torch.ops.fluxrewrite_test.odd.default, (), "")
    monkeypatch.setattr(neuron, "load_kernels", lambda names: {"odd": odd})
    with pytest.raises(InputError, match="argument where of type Device"):
        neuron.neuron_op("odd", "mine", 2)


def test_without_the_packages():
    with pytest.raises(InputError, match="needs torch_neuronx and nki, installed from AWS's package index"):
        fluxrewrite.backend(inner="neuron")


def test_ops_that_run_elsewhere_are_left_alone(trace):
    x, table = torch.randn(1, 6, 2, 64), torch.randn(6, 64)
    gm = trace(lambda x, t: torch.ops.fluxrewrite.rope(x, t, t, True, 1, execution="emulate"), x=x, t=table)
    before = [n.target for n in gm.graph.nodes]
    assert [n.target for n in neuron.lowered(gm, 2).graph.nodes] == before
