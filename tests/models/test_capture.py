import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

import fluxrewrite
from fluxrewrite import Options
from fluxrewrite.errors import InputError
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.capture import capture, capture_spec


class Breaking(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.tied = self.a

    def forward(self, x):
        y = self.a(x)
        torch._dynamo.graph_break()
        return self.tied(y)


def test_graph_breaks_are_kept_with_reason_and_place():
    captured = capture(Breaking(), {"x": torch.randn(2, 4)})
    assert len(captured.graphs) == 2
    assert len(captured.breaks) == 1
    assert captured.breaks[0].location.startswith(__file__)
    assert captured.breaks[0].reason


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.13",
    reason="Dynamo of torch 2.9 goes on into FakeTensorMode's own code, and fails",
)
def test_an_operation_whose_result_has_a_size_of_its_own_is_a_break_and_no_error():
    def picks(x):
        return x.cos() + x[x > 0].sum()

    captured = capture(picks, {"x": torch.randn(3)})
    assert len(captured.graphs) == 2
    assert len(captured.breaks) == 1


def test_the_model_is_left_as_it_was():
    model = Breaking()
    model.a.bias.requires_grad_(False)
    before = {n: (id(p), p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    capture(model, {"x": torch.randn(2, 4)})
    for name, parameter in model.named_parameters():
        identity, value, grad = before[name]
        assert id(parameter) == identity
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == grad
    assert type(model.a.weight) is nn.Parameter


def test_the_model_is_left_as_it_was_after_an_error():
    class Wrong(Breaking):
        def forward(self, x):
            raise RuntimeError("not today")

    model = Wrong()
    with pytest.raises(InputError, match="RuntimeError: not today"):
        capture(model, {"x": torch.randn(2, 4)})
    assert type(model.a.weight) is nn.Parameter


def test_the_same_model_can_be_traced_many_times():
    model = nn.Linear(4, 4)
    for _ in range(12):
        assert len(capture(model, {"input": torch.randn(2, 4)}).graphs) == 1


def test_tracing_a_model_that_breaks_does_not_use_up_its_recompiles():
    model, x = Breaking(), torch.randn(2, 4)
    assert [len(capture(model, {"x": x}).graphs) for _ in range(12)] == [2] * 12
    made = []
    with torch.no_grad():
        torch.compile(model, backend=lambda gm, _: made.append(gm) or gm)(x)
    assert len(made) == 2


def test_fake_tensors_that_the_model_kept_are_removed():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("cache", None)
            self.seen, self.calls, self.last = [], 0, None

        def forward(self, x):
            if self.cache is None:
                self.cache = x.new_ones(4)
            self.calls += 1
            self.last = x * self.cache
            self.seen.append(self.last)
            return self.last

    model = Keeping()
    seen = model.seen
    capture(model, {"x": torch.randn(2, 4)})
    assert (model.cache, model.calls, model.last) == (None, 0, None)
    assert model.seen is seen == []
    assert type(model(torch.randn(2, 4))) is torch.Tensor


def test_lazy_modules_are_refused():
    with pytest.raises(InputError, match="parameters without a shape"):
        capture(nn.LazyLinear(3), {"input": torch.randn(2, 4)})


def test_dynamic_sizes_are_reported():
    report = fluxrewrite.inspect(nn.Linear(4, 4), {"input": torch.randn(6, 4)}, options=Options(dynamic=True))
    assert any("[0] = s" in d for d in report.model.dynamic_sizes)


def test_buffers_and_parameters_are_counted_once_when_tied():
    assert capture(Breaking(), {"x": torch.randn(2, 4)}).parameters == 20


def test_no_memory_is_taken_for_weights():
    model, mode = find_model("flux2-dev"), torch.bfloat16
    captured = capture_spec(find_model("flux2-klein-4b"), Shapes(16, 16), mode)
    assert captured.parameters == 3875544576
    assert captured.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32, "it is put back"
    assert model.name == "flux2-dev"
