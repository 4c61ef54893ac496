"""torch.func around a model, and inference mode."""

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap


@pytest.mark.slow
def test_functional_call(small, plugin, taken):
    model, inputs = small()
    sets = [{k: v * f for k, v in model.named_parameters()} for f in (1.0, 1.3)]
    sets.append({k: torch.nn.Parameter(v * 0.8) for k, v in model.named_parameters()})
    backend = plugin("inline")
    run = torch.compile(lambda p: functional_call(model, p, kwargs=inputs)[0], backend=backend)
    with torch.no_grad():
        for parameters in sets:
            expected = functional_call(model, parameters, kwargs=inputs)[0]
            for _ in range(2):
                torch.testing.assert_close(run(parameters), expected, atol=1e-4, rtol=1e-4)
    assert taken(backend)["qkv"] >= 3


@pytest.mark.slow
def test_vmap_over_inputs(small, plugin, taken):
    """Values that torch.func batches have other shapes than the graph says: no site is among them."""
    model, inputs = small()
    others = {k: v for k, v in inputs.items() if k != "hidden_states"}

    def f(x):
        return vmap(lambda one: model(hidden_states=one, **others)[0])(x)

    x = torch.randn(2, *inputs["hidden_states"].shape)
    backend = plugin("all", "aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(f, backend=backend)(x), f(x), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_vmap_over_weights(small, plugin):
    models = [small()[0] for _ in range(2)]
    inputs = small()[1]
    parameters, buffers = stack_module_state(models)

    def f(p):
        return vmap(lambda one: functional_call(models[0], (one, buffers), kwargs=inputs)[0])(p)

    with torch.no_grad():
        found = torch.compile(f, backend=plugin("all", "aot_eager"))({k: v.detach() for k, v in parameters.items()})
        for one, model in zip(found, models, strict=True):
            torch.testing.assert_close(one, model(**inputs)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_inference_mode(small, plugin, same, taken):
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(model, backend=backend)
    for _ in range(2):
        with torch.inference_mode():
            torch.testing.assert_close(run(**inputs)[0], model(**inputs)[0], atol=1e-4, rtol=1e-4)
    same(run, model, inputs)
    assert taken(backend)["qkv"] >= 3
