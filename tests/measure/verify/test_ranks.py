"""What several ranks found, as one."""

import pytest
from rank_groups import at_once, rank_groups

from fluxrewrite.errors import RankError, RewriteError
from fluxrewrite.measure.rendezvous import END
from fluxrewrite.measure.verify.ranks import of_all_ranks
from fluxrewrite.measure.verify.records import LoopResult, Moments, SiteResult, StepResult


def site(path="a", relative=0.0, norm=0.0, cosine=1.0, note=""):
    figures = (None,) * 4 if note else (relative, relative, norm, cosine)
    return SiteResult(
        graph=0, kind="rope", form="interleaved", path=path, node="out", choice="kernel", shapes={"heads": 2}, dtype="float32",
        max_abs=figures[0], relative=figures[1], norm=figures[2], cosine=figures[3], tolerance=1e-5, norm_tolerance=5e-6,
        least_cosine=0.9999, note=note,
    )  # fmt: skip


def loop(cosine=1.0):
    m = Moments(min=0, max=1, mean=0, std=1)
    step = StepResult(step=1, original=m, rewritten=m, max_abs=0, relative=0, cosine=cosine, least_cosine=0.9999)
    return LoopResult(steps=(step,))


def gathered(*found):
    return at_once(*(lambda c=c, f=f: of_all_ranks(c, *f) for c, f in zip(rank_groups(len(found)), found, strict=True)))


def test_the_worst_rank_of_each_site():
    first = [site("a", 1e-7), site("b", 3e-5), site("c")]
    second = [site("a", 2e-7), site("b", 2e-5), site("c", note="computes NaN or inf")]
    one, two = gathered((first, loop(1.0)), (second, loop(0.5)))
    assert one == two
    sites, merged = one
    assert [(s.path, s.rank, s.relative, s.passed) for s in sites] == [
        ("a", 1, 2e-7, True),
        ("b", 0, 3e-5, False),
        ("c", 1, None, False),
    ]
    assert sites[1].name == "rope:interleaved at b (out) on rank 0"
    assert merged == loop(1.0), "latents are those of the first rank"


def test_ranks_that_are_alike_name_the_first():
    (sites, _), _ = gathered(([site()], loop()), ([site()], loop()))
    assert sites[0].rank == 0


def test_other_sites_on_one_rank():
    for found in gathered(([site("a")], loop()), ([site("b")], loop())):
        assert isinstance(found, RewriteError)
        assert "rank 1 checked 1 sites and rank 0 checked 1, and they differ; give every rank" in str(found)


def test_a_rank_that_ended():
    first, second = rank_groups(2, wait_s=60)
    second.publish(END, "{}")
    with pytest.raises(RankError, match="rank 1 ended early"):
        of_all_ranks(first, [site()], loop())
