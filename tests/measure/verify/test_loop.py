import pytest
import torch
from torch import nn

from fluxrewrite.errors import InputError
from fluxrewrite.measure.verify.loop import compared, run_loop
from fluxrewrite.models.workload import Workload

X = torch.tensor([1.0, -2.0, 3.0])


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def workload(model=None):
    return Workload("double", model or Double(), {"x": X}, denoises=False)


def test_each_step_has_the_figures_of_both():
    told = []
    loop = run_loop(workload(), lambda x: 2 * x + 0.01, 3, 0.9999, told.append)
    assert loop.passed
    assert loop.steps == tuple(told)
    assert [s.step for s in loop.steps] == [1, 2, 3]
    step = loop.steps[0]
    assert (step.original.min, step.original.max) == (-4, 6)
    assert step.rewritten.mean == pytest.approx(step.original.mean + 0.01)
    assert step.max_abs == pytest.approx(0.01, rel=1e-4)
    assert step.relative == pytest.approx(0.01 / 6, rel=1e-4)
    assert 0.9999 < step.cosine < 1


def test_loops_go_on_from_their_own_latents(small):
    """A call that is a little off is further off at each step, for its error comes back to it."""
    w = small()
    loop = run_loop(w, lambda **inputs: (w.model(**inputs)[0] * 1.05,), 3, 0.0)
    errors = [s.max_abs for s in loop.steps]
    assert 0 < errors[0] < errors[1] < errors[2]
    own = [float(latents.std(correction=0)) for latents in w.steps(3)]
    assert [s.original.std for s in loop.steps] == pytest.approx(own)


def test_a_step_past_its_limit_fails():
    loop = run_loop(workload(), lambda x: 2 * x.flip(0), 2, 0.9999)
    assert not loop.passed
    assert [s.passed for s in loop.steps] == [False, False]


def test_nan_fails():
    loop = run_loop(workload(), lambda x: x * float("nan"), 1, 0.0)
    (step,) = loop.steps
    assert not step.passed
    assert "NaN" in step.note
    assert step.rewritten.std is None
    assert step.original.std is not None


def test_a_rewritten_model_that_fails_ends_the_loop_and_keeps_its_steps():
    calls = []

    def call(x):
        calls.append(x)
        if len(calls) == 2:
            raise RuntimeError("the kernel\ngave up")
        return 2 * x

    loop = run_loop(workload(), call, 3, 0.9999)
    assert len(loop.steps) == 1
    assert loop.note == "step 2 of the rewritten model fails: RuntimeError: the kernel"
    assert not loop.passed


def test_a_model_that_fails_by_itself_is_bad_input():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("shapes do not fit")

    with pytest.raises(InputError, match=r"double: the model itself fails \(ValueError: shapes do not fit\)"):
        run_loop(workload(Broken()), lambda x: x, 1, 0.9999)


def test_gradients_are_as_they_were():
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            run_loop(workload(), lambda x: 2 * x, 2, 0.9999)
            assert torch.is_grad_enabled() == enabled


def test_loops_of_different_length_end_together():
    assert [s.step for s in compared([X, X, X], [X, X], 0.9)] == [1, 2]
