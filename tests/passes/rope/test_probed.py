"""Rotations that no pattern knows: found by what they compute, and what is nearly one is not."""

import math

import pytest
import torch
import torch.nn.functional as F
from fluxrewrite.passes.rope.rope import Rope
from torch import nn

import fluxrewrite
from fluxrewrite.graph import GraphView
from fluxrewrite.models.capture import capture
from fluxrewrite.rewrite.planner import make_plan
from fluxrewrite.rewrite.proof import Prover, Store
from fluxrewrite.rewrite.proof.probe import Limits, budget_of
from fluxrewrite.rewrite.selection import Selection
from fluxrewrite.site import Code, Site

B, S, H, D = 2, 12, 3, 8


class Attends(nn.Module):
    """Query and key from layers, through `turn`, into attention; heads behind positions, or in front of them (`axis` 2)."""

    def __init__(self, turn, axis=1, norm=False):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(20, H * D) for _ in range(3))
        self.gain = nn.Parameter(torch.randn(D)) if norm else None
        self.turn, self.axis = turn, axis

    def forward(self, x, **tables):
        q, k, v = (f(x).unflatten(-1, (H, D)) for f in (self.q, self.k, self.v))
        if self.gain is not None:
            q, k = (t * torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain for t in (q, k))
        if self.axis == 2:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        q, k = self.turn(q, **tables), self.turn(k, **tables)
        if self.axis == 1:
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)


def pairs(t):
    return t.unflatten(-1, (-1, 2))


def addcmul(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)), -1)


def rolled(x, cos, sin):
    sign = torch.cat((-torch.ones(D // 2), torch.ones(D // 2)))
    return x * torch.cat((cos, cos), -1) + x.roll(D // 2, -1) * sign * torch.cat((sin, sin), -1)


def flipped(x, cos, sin):
    turned = pairs(x).flip(-1) * torch.tensor([-1.0, 1.0])
    return (pairs(x) * cos[..., None] + turned * sin[..., None]).flatten(-2)


def picked(x, cos, sin):
    order = torch.arange(D).unflatten(0, (-1, 2)).flip(-1).flatten()
    sign = torch.tensor([-1.0, 1.0]).repeat(D // 2)
    return x * cos.repeat_interleave(2, -1) + x.index_select(-1, order) * (sign * sin.repeat_interleave(2, -1))


def gathered(x, cos, sin):
    order = ((torch.arange(D) + D // 2) % D).expand(x.shape)
    sign = torch.where(torch.arange(D) < D // 2, -1.0, 1.0)
    return x * torch.cat((cos, cos), -1) + x.gather(-1, order) * sign * torch.cat((sin, sin), -1)


def by_large_matrix(x, cos, sin):
    c, s = torch.diag_embed(cos), torch.diag_embed(sin)
    matrix = torch.cat((torch.cat((c, -s), -1), torch.cat((s, c), -1)), -2)
    return (matrix @ x[..., None])[..., 0]


def by_turning_matrix(x, cos, sin):
    turn = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]])] * (D // 2))
    return x * cos.repeat_interleave(2, -1) + (x @ turn) * sin.repeat_interleave(2, -1)


def by_einsum(x, cos, sin):
    matrix = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
    return torch.einsum("...ij,...j->...i", matrix, pairs(x)).flatten(-2)


def polar_halves(x, angle):
    a, b = x.chunk(2, -1)
    turned = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)


def exponential(x, angle):
    freqs = torch.exp(torch.complex(torch.zeros_like(angle), angle))
    turned = torch.view_as_complex(pairs(x).contiguous()) * freqs
    return torch.stack((turned.real, turned.imag), -1).flatten(-2)


def from_positions(x, positions):
    frequencies = 10000.0 ** (-torch.arange(0, D, 2) / D)
    angle = positions.float()[:, None, None] * frequencies
    return addcmul(x, angle.cos(), angle.sin())


def a_part(x, cos, sin):
    """The first channels only."""
    a, b = x[..., : D // 2].chunk(2, -1)
    c, s = cos[..., : D // 4], sin[..., : D // 4]
    turned = torch.cat((torch.addcmul(a * c, b, s, value=-1), torch.addcmul(b * c, a, s)), -1)
    return torch.cat((turned, x[..., D // 2 :]), -1)


def in_two_steps(x, cos, sin):
    out = pairs(x) * cos[..., None]
    first, second = pairs(x).unbind(-1)
    return (out + torch.stack((second, first), -1) * torch.stack((-sin, sin), -1)).flatten(-2)


def scaled_after(x, cos, sin):
    return addcmul(x, cos, sin) * 0.5


TABLES = {"cos": torch.randn(S, 1, D // 2), "sin": torch.randn(S, 1, D // 2)}
ANGLE = {"angle": torch.randn(S, 1, D // 2)}
FOUND = {
    addcmul: TABLES, rolled: TABLES, flipped: TABLES, picked: TABLES, gathered: TABLES, by_large_matrix: TABLES,
    by_turning_matrix: TABLES, by_einsum: TABLES, polar_halves: ANGLE, exponential: ANGLE, a_part: TABLES,
    in_two_steps: TABLES, scaled_after: TABLES, from_positions: {"positions": torch.arange(S)},
}  # fmt: skip


def of(report):
    return [(s.form, s.choice) for s in report.sites]


@pytest.mark.parametrize("turn", FOUND, ids=lambda f: f.__name__)
def test_found_and_equal(check, turn):
    report = check(Attends(turn), "rope", x=torch.randn(B, S, 20), **FOUND[turn])
    assert of(report) == [("probed", "kernel")] * 2
    assert {s.details["axis"] for s in report.sites} == {1}
    assert {s.proof.status for s in report.sites} == {"proved"}


@pytest.mark.parametrize("turn", [addcmul, by_einsum, by_large_matrix])
def test_with_heads_in_front_of_positions(check, turn):
    tables = {name: t.transpose(0, 1)[None] for name, t in TABLES.items()}
    report = check(Attends(turn, axis=2), "rope", x=torch.randn(B, S, 20), **tables)
    assert of(report) == [("probed", "kernel")] * 2
    assert {s.details["axis"] for s in report.sites} == {2}


def test_tables_of_each_batch_and_a_norm_spelled_out(check):
    tables = {name: torch.randn(B, S, 1, D // 2) for name in ("cos", "sin")}
    report = check(Attends(rolled, norm=True), "rope", x=torch.randn(B, S, 20), **tables)
    assert of(report) == [("probed", "kernel")] * 2


def test_in_bfloat16_with_float32_tables(check):
    def turn(x, cos, sin):
        return addcmul(x.float(), cos, sin).type_as(x)

    model = Attends(turn).to(torch.bfloat16)
    report = check(model, "rope", tolerance=2e-2, x=torch.randn(B, S, 20).bfloat16(), **TABLES)
    assert of(report) == [("probed", "kernel")] * 2


def test_with_sizes_that_are_not_known(trace, tmp_path):
    gm = trace(Attends(rolled), dynamic=True, x=torch.randn(B, S, 20), **TABLES)
    plan = make_plan(GraphView(gm.graph), Selection.of("rope", "reference"), prove=Prover(Store(tmp_path)))
    assert [(d.finding.form, d.choice) for d in plan.decisions] == [("probed", "kernel")] * 2
    assert isinstance(plan.decisions[0].finding.shapes["sequence"], str)


def test_many_alike_are_run_once(trace):
    class Twice(Attends):
        def forward(self, x, **tables):
            return super().forward(x, **tables).sum() + super().forward(x * 2, **tables)

    view = GraphView(trace(Twice(addcmul), x=torch.randn(B, S, 20), **TABLES).graph)
    assert [s.form for s in Rope().find(view)] == ["probed"] * 4
    assert budget_of(view).probes == 1


def _findings(model, limits=None, **given):
    (gm,) = capture(model, {"x": torch.randn(B, S, 20), **(given or TABLES)}).graphs
    view = GraphView(gm.graph)
    if limits is not None:
        budget_of(view, limits)
    return Rope().find(view)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(work=20), "more than 20 steps of work"),
        (Limits(probes=0), "0 other regions of the graph were probed"),
        (Limits(elements=100), "more than 100"),
        (Limits(nodes=3), "more than 3 operations lie between"),
    ],
)
def test_limits(limits, said):
    findings = _findings(Attends(addcmul), limits)
    assert {f.reason.code for f in findings} == {Code.NOT_PROBED}
    assert all(said in f.reason.message and f.reason.node for f in findings), findings


def first_positions(x, cos, sin):
    """Nothing is seen of it at fewer than 9 positions."""
    return torch.where((torch.arange(S) < 9)[:, None, None], addcmul(x, cos, sin), x)


def shifted_input(x, cos, sin):
    a, b = x.roll(24, 1).chunk(2, -1)
    return torch.cat((torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(x.chunk(2, -1)[1] * cos, a, sin)), -1)


@pytest.mark.parametrize("turn", [first_positions, shifted_input])
def test_what_shows_at_large_sizes_only(check, turn):
    class Wide(Attends):
        def forward(self, x, **tables):
            return super().forward(x, **tables)

    report = check(Wide(turn), "rope", x=torch.randn(B, S, 20), **TABLES)
    turned = [s for s in report.sites if s.choice == "kernel"]
    assert len(turned) == (2 if turn is first_positions else 0)  # the rotation within the choice is one


def test_a_value_that_is_used_elsewhere(find):
    class Kept(Attends):
        def forward(self, x, **tables):
            kept = []

            def turn(t, cos, sin):
                a, b = t.chunk(2, -1)
                half = torch.addcmul(a * cos, b, sin, value=-1)
                kept.append(half)
                return torch.cat((half, torch.addcmul(b * cos, a, sin)), -1)

            self.turn = turn
            return super().forward(x, **tables), kept

    findings = find("rope", Kept(addcmul), x=torch.randn(B, S, 20), **TABLES)
    assert {f.reason.code for f in findings} == {Code.INNER_USE}


def test_computed_in_a_wider_dtype(find):
    def turn(x, cos, sin):
        return addcmul(x.double(), cos.float(), sin.float()).to(x.dtype)

    findings = find("rope", Attends(turn), x=torch.randn(B, S, 20), **TABLES)
    assert {f.reason.code for f in findings} == {Code.PRECISION}


def test_without_a_proof_it_is_left_alone(tmp_path):
    model = Attends(addcmul)
    for proof, expected in (("structural", "keep"), ("numeric", "kernel")):
        torch._dynamo.reset()
        backend = fluxrewrite.backend("eager", "rope", provider="reference", proof=proof, cache_dir=tmp_path)
        with torch.no_grad():
            torch.compile(model, backend=backend)(x=torch.randn(B, S, 20), **TABLES)
        (report,) = backend.reports
        assert {s.choice for s in report.sites} == {expected}
        codes = {r.code for s in report.sites for r in s.reasons}
        assert codes == ({"needs_proof"} if proof == "structural" else set())


def test_known_forms_are_not_probed(trace):
    def turn(x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    view = GraphView(trace(Attends(turn), x=torch.randn(B, S, 20), **TABLES).graph)
    assert [s.form for s in Rope().find(view)] == ["rotate_half"] * 2
    assert budget_of(view).probes == 0


def test_near_misses_of_patterns_say_what_a_probe_found(find):
    """A pattern's near miss stays one finding; one that is a rotation after all is a site only."""

    def less(x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * torch.cat((cos, cos), -1) - torch.cat((-b, a), -1) * torch.cat((sin, sin), -1)

    def scaled(x, cos, sin):
        a, b = x.chunk(2, -1)
        return torch.addcmul(x * torch.cat((cos, cos), -1), torch.cat((-b, a), -1), torch.cat((sin, sin), -1))

    x = torch.randn(B, S, 20)
    misses = find("rope", Attends(less), x=x, **TABLES)
    assert [m.reason.code for m in misses] == [Code.PATTERN] * 2
    assert all("run on random inputs, " in m.reason.message and "table of sin" in m.reason.message for m in misses)
    assert [s.form for s in find("rope", Attends(scaled), x=x, **TABLES) if isinstance(s, Site)] == ["probed"] * 2


def test_attention_over_math_tables_of_positions_spelled_anew(check):
    """Tables of each axis of an image, joined; what they are made of is not looked at beyond the table itself."""

    def turn(x, ids):
        halves = [ids[:, i, None].float() * 100.0 ** (-torch.arange(0, D // 2, 2) / D) for i in range(2)]
        angle = torch.cat(halves, -1)[:, None] * math.pi
        return flipped(x, angle.cos(), angle.sin())

    report = check(Attends(turn), "rope", x=torch.randn(B, S, 20), ids=torch.randint(0, 5, (S, 2)))
    assert of(report) == [("probed", "kernel")] * 2
