"""Graphs in ATen: of torch.export, and as AOTAutograd hands them on."""

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from fluxrewrite.graph import GraphView
from fluxrewrite.rewrite.plan import apply
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.selection import Selection


@pytest.mark.slow
def test_an_exported_program(small, same):
    model, inputs = small()
    program = torch.export.export(model, (), inputs)
    plan = make_plan(GraphView(program.graph), Selection.of(provider="reference"))
    rewritten, plan = apply(program.graph_module, plan)
    kinds = [r.site.kind for r in plan.replacements()]
    assert sorted(kinds) == ["norm_rope_attention"] * 2 + ["qkv"] * 3
    given = {
        s.arg.name: program.state_dict.get(s.target, program.constants.get(s.target))
        for s in program.graph_signature.input_specs
        if s.target
    }
    flat = iter([v for v in torch.utils._pytree.tree_leaves(inputs)])
    names = [n.name for n in rewritten.graph.find_nodes(op="placeholder")]
    arguments = [given[n] if n in given else next(flat) for n in names]
    with torch.no_grad():
        (found,) = rewritten(*arguments)
        torch.testing.assert_close(found, model(**inputs)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_module_of_an_exported_program(small, plugin, same, taken):
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(torch.export.export(model, (), inputs).module(), backend=backend)
    for _ in range(2):
        same(run, model, inputs)
    assert taken(backend) == {"qkv": 3, "norm_rope_attention": 2}


@pytest.mark.slow
def test_a_program_decomposed_to_core_aten_is_left_alone(small, plugin, same, taken, reasons):
    model, inputs = small()
    backend = plugin("inline")
    program = torch.export.export(model, (), inputs).run_decompositions()
    same(torch.compile(program.module(), backend=backend), model, inputs)


@pytest.mark.slow
def test_behind_aot_autograd(small, plugin, same, taken):
    """The graph is functional and decomposed, its inputs are fake while it compiles."""
    model, inputs = small()
    backend = plugin("inline")
    run = torch.compile(model, backend=aot_autograd(fw_compiler=backend))
    for _ in range(2):
        same(run, model, inputs)
