import pytest

from fluxrewrite.fusion import Fusion, Group
from fluxrewrite.measure.oracle.compare import Agreement, agreement, lost_fusions, rank_agreement


def fusion(*groups: str) -> Fusion:
    return Fusion("test", tuple(Group(f"k{i}", "fused", frozenset(g.split()), 0, 0) for i, g in enumerate(groups)))


def test_an_edge_is_lost_when_a_kernel_held_both_ends_and_none_does_now() -> None:
    before = fusion("a b c", "d e")
    after = fusion("a b", "c", "d e")
    edges = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")]
    assert lost_fusions(before, after, edges) == {("b", "c")}


def test_an_edge_into_a_kernel_call_is_lost_if_it_was_fused_before() -> None:
    before, after = fusion("a b", "b c", "d"), fusion("a", "call", "c", "d")
    assert lost_fusions(before, after, [("a", "b"), ("b", "c"), ("c", "d")]) == {("a", "b"), ("b", "c")}


def test_a_node_computed_again_elsewhere_keeps_its_edge() -> None:
    assert not lost_fusions(fusion("a b c"), fusion("a b", "b c"), [("a", "b"), ("b", "c")])


def test_precision_and_recall() -> None:
    ab, bc, cd = ("a", "b"), ("b", "c"), ("c", "d")
    assert agreement([ab, bc, ab], [bc, cd]) == Agreement(0.5, 0.5, 2, 2, 1)
    assert agreement([ab, bc, cd], [bc]) == Agreement(1 / 3, 1.0, 3, 1, 1)
    assert agreement([], []) == Agreement(1.0, 1.0, 0, 0, 0)
    assert agreement([ab], []) == Agreement(0.0, 1.0, 1, 0, 0)
    assert agreement([], [ab]) == Agreement(1.0, 0.0, 0, 1, 0)


@pytest.mark.parametrize(
    ("predicted", "tau"),
    [
        ((1, 2, 3, 4), 1.0),
        ((10, 20, 30, 400), 1.0),
        ((4, 3, 2, 1), -1.0),
        ((1, 3, 2, 4), 4 / 6),
        ((1, 1, 2, 3), 5 / 30**0.5),
        ((7, 7, 7, 7), 0.0),
    ],
)
def test_rank_agreement_is_kendalls_tau_b(predicted: tuple[int, ...], tau: float) -> None:
    actual = dict(zip("abcd", (1, 2, 3, 4), strict=True))
    assert rank_agreement(dict(zip("abcd", predicted, strict=True)), actual) == pytest.approx(tau)


def test_rank_agreement_without_any_order() -> None:
    assert rank_agreement({"a": 1, "b": 1}, {"a": 5, "b": 5}) == 1.0
    assert rank_agreement({"a": 1}, {"a": 2}) == 1.0


def test_rank_agreement_wants_the_same_variants() -> None:
    with pytest.raises(ValueError, match="one side only: b, c"):
        rank_agreement({"a": 1, "b": 2}, {"a": 1, "c": 2})
