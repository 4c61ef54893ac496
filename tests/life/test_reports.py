"""Copies and pickles of what a compile leaves behind."""

import copy
import pickle

import pytest
import torch


@pytest.mark.slow
def test_a_report_outlives_its_process(small, plugin, same):
    model, inputs = small()
    backend = plugin()
    same(torch.compile(model, backend=backend), model, inputs)
    (report,) = backend.reports
    assert pickle.loads(pickle.dumps(report)) == report
    assert copy.deepcopy(report) == report


@pytest.mark.slow
def test_a_copy_of_a_compiled_model_has_its_own_weights(small, plugin, same):
    model, inputs = small()
    run = torch.compile(model, backend=plugin("inline"))
    same(run, model, inputs)
    twin = copy.deepcopy(run)
    with torch.no_grad():
        twin.transformer_blocks[0].attn.to_v.weight.mul_(2)
    a, b = same(run, model, inputs), same(twin, twin._orig_mod, inputs)
    assert not torch.allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_a_model_compiled_in_place_can_be_pickled(small, plugin, same):
    model, inputs = small()
    model.compile(backend=plugin("inline"))
    twin = pickle.loads(pickle.dumps(model))
    same(model, twin, inputs)
    same(pickle.loads(pickle.dumps(model)), twin, inputs)
