"""Parameters made or read one at a time, of which each rank keeps its part."""

import json
from typing import ClassVar

import pytest
import torch
from ranked import SMALL, SMALL1, flux2, run_ranks
from torch import nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef

from fluxrewrite import parallel
from fluxrewrite.errors import InputError
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.models.weights import place, weights_of
from fluxrewrite.models.workload import realise
from fluxrewrite.parallel import fake_group

pytestmark = pytest.mark.skipif(
    not hasattr(torch.distributed.distributed_c10d, "GroupName"), reason="DTensor's graphs are those of torch 2.13"
)

pytest.importorskip("diffusers")
SHAPES = Shapes(image_tokens=6, text_tokens=3)


@pytest.fixture(params=[("Flux2Transformer2DModel", SMALL), ("FluxTransformer2DModel", SMALL1)], ids=["flux2", "flux1"])
def folder(request, tmp_path):
    """A folder with the configuration of a small transformer, no weights."""
    cls, config = request.param
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": cls}))
    return tmp_path


def same(a, b):
    """Whether two divided models hold the same parts in the same way."""
    for (name, x), (other, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert (name, type(x), x.dtype) == (other, type(y), y.dtype)
        assert torch.equal(x.to_local(), y.to_local()) if isinstance(x, DTensor) else torch.equal(x, y), name
        assert not isinstance(x, DTensor) or x.placements == y.placements
    return True


@pytest.mark.parametrize("rank", [0, 1])
def test_parts_of_the_weights_that_one_process_has(folder, rank):
    """Random ones and those of a folder; the forward hooks are those of `shard` too."""
    whole = realise(find_model(str(folder)), SHAPES, torch.bfloat16, seed=3)
    whole.model.save_pretrained(folder / "saved", max_shard_size="100KB")
    assert len(list((folder / "saved").glob("*.safetensors"))) > 1
    with fake_group(2, rank):
        parallel.shard(whole.model, 2)
        for name in (folder, folder / "saved"):
            parts = realise(find_model(str(name)), SHAPES, torch.bfloat16, seed=3, world=2)
            assert parallel.degree(parts.model) == 2
            assert same(whole.model, parts.model)
            assert torch.equal(whole.inputs["hidden_states"], parts.inputs["hidden_states"])
            assert torch.equal(next(whole.steps(1)), next(parts.steps(1)))


@pytest.mark.slow
def test_real_ranks_compute_the_result_of_one_process(folder):
    for answer in run_ranks("placed", 2, folder, config=str(folder)):
        assert answer["result"]["off"] < 1e-5
        assert answer["result"]["scale"] > 0.1


def meta():
    import diffusers

    with torch.device("meta"):
        return diffusers.Flux2Transformer2DModel(**SMALL)


def test_one_whole_parameter_at_a_time():
    made = []

    def whole(name, like):
        assert all(storage.expired() for storage in made), name
        tensor = torch.zeros(like.shape)
        if name in divided:
            made.append(StorageWeakRef(tensor.untyped_storage()))
        return tensor

    reference, _ = flux2()
    with fake_group(4):
        parallel.shard(reference, 4)
        divided = {n for n, p in reference.named_parameters() if isinstance(p, DTensor)}
        model = place(meta(), 4, whole)
    assert len(divided) == len(made) == 14
    parts = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
    assert all(p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in parts)


def test_a_callable_builds_the_whole():
    spec = find_model("ranked:flux2")
    with fake_group(2):
        model = realise(spec, SHAPES, torch.float32, world=2).model
        assert same(parallel.shard(flux2()[0], 2), model)


def test_a_model_that_cannot_be_divided_is_left_as_it_is():
    model = meta()
    with fake_group(3), pytest.raises(InputError, match="4 heads cannot be divided among 3 ranks"):
        place(model, 3, lambda name, like: pytest.fail("asked for a parameter"))
    assert all(p.is_meta for p in model.parameters())


class Shared(nn.Module):
    _tp_plan: ClassVar = {"up": "colwise"}

    def __init__(self):
        super().__init__()
        self.up, self.again = nn.Linear(4, 8), nn.Linear(4, 8)
        self.again.weight = self.up.weight


def test_a_parameter_of_two_modules():
    with torch.device("meta"):
        model = Shared()
    with fake_group(2), pytest.raises(InputError, match=r"Shared: again.weight is a parameter of another module too"):
        place(model, 2, lambda name, like: torch.zeros(like.shape))


def test_weights_that_do_not_fit(tmp_path):
    model, _ = flux2()
    model.save_pretrained(tmp_path)
    like = model.x_embedder.weight
    with weights_of(tmp_path) as whole:
        assert torch.equal(whole("x_embedder.weight", like)[:], like)
        with pytest.raises(InputError, match=r"the weights have no y_embedder.weight; save the model again"):
            whole("y_embedder.weight", like)
        with pytest.raises(InputError, match=r"x_embedder.weight has shape \[64, 8\], config.json says \[8, 64\]"):
            whole("x_embedder.weight", like.T)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"the weights cannot be loaded .*; ranks read"), weights_of(tmp_path):
        pass
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"the weights cannot be loaded .*; ranks read"), weights_of(tmp_path):
        pass
