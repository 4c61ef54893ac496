"""torch.autocast around the compiled model, inside it, and off again inside."""

import pytest
import torch
from torch import nn


def low():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.slow
def test_around(small, plugin, same, reasons):
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(model, backend=backend)
    with low():
        same(run, model, inputs, 2e-2)
    assert "mixed_dtype" in reasons(backend)
    same(run, model, inputs)


@pytest.mark.slow
def test_around_a_model_of_low_precision(small, plugin, same, taken):
    model, inputs = small(torch.bfloat16)
    backend = plugin()
    run = torch.compile(model, backend=backend)
    with low():
        same(run, model, inputs, 5e-2)


class Parts(nn.Module):
    """Projections in one regime, attention in another."""

    def __init__(self, dtype, outer, inner):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32, dtype=dtype) for _ in range(3))
        self.outer, self.inner = outer, inner

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.outer):
            q, k = (layer(x).unflatten(-1, (2, 16)).transpose(1, 2) for layer in (self.q, self.k))
            with torch.autocast("cpu", torch.bfloat16, enabled=self.inner):
                v = self.v(x).unflatten(-1, (2, 16)).transpose(1, 2)
                scores = torch.softmax(q @ k.transpose(-1, -2) * 0.25, -1).to(v.dtype)
                y = scores @ v
            return (y,)


LOW, FULL = torch.bfloat16, torch.float32
CASES = [  # dtype of the model, autocast around it, around all inside, around the value and the product
    (FULL, False, True, True),
    (FULL, True, False, False),
    (FULL, False, False, True),
    (FULL, True, True, True),
    (LOW, False, True, False),
    (LOW, True, False, True),
]


@pytest.mark.parametrize("compiler", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "around", "outer", "inner"), CASES)
def test_inside(compiler, dtype, around, outer, inner, plugin, same):
    model = Parts(dtype, outer, inner)
    x = torch.randn(2, 6, 32, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=around):
        exact = dtype is FULL and not (outer or inner)
        same(torch.compile(model, backend=plugin("inline", compiler)), model, {"x": x}, 1e-5 if exact else 2e-2)
