"""Proofs are kept; a file that is broken, another's or cannot be written costs a proof and nothing else."""

import threading

import torch
import torch.nn.functional as F

from fluxrewrite.rewrite.proof import Prover, Store
from fluxrewrite.site import Proof

KEY = "ab" * 32


def test_what_is_saved_is_loaded(tmp_path):
    for proof in (Proof("proved", dtype="float64"), Proof("failed", 0.25, "traced"), Proof("failed", note="NaN")):
        Store(tmp_path / "new").save(KEY, proof)
        assert Store(tmp_path / "new").load(KEY) == proof
    assert Store(tmp_path).load("cd" * 32) is None


def test_what_could_not_be_run_is_not_kept_on_disk(tmp_path):
    store = Store(tmp_path)
    store.save(KEY, Proof("unproved", note="no memory"))
    assert Store(tmp_path).load(KEY) is None
    assert not list(tmp_path.iterdir())


def test_a_broken_file_is_proved_again(sites, caplog):
    site = sites.of("rope")[0]
    assert sites.prove(site).status == "proved"
    (path,) = sites.folder.iterdir()
    whole = path.read_text()
    for broken in ("", whole[:40], whole.replace("proved", "believed"), whole.replace('"key": "', '"key": "0')):
        path.write_text(broken)
        caplog.clear()
        prover = Prover(Store(sites.folder))
        assert sites.prove(site, prover=prover).status == "proved"
        assert prover.new == 1
        assert "proved again" in caplog.text
        assert path.read_text() == whole


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_file(sites, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    prover = Prover(Store(blocked / "below"))
    site = sites.of("rope")[0]
    assert sites.prove(site, prover=prover).status == "proved"
    assert "proofs are not kept" in caplog.text
    assert sites.prove(site, prover=prover).status == "proved"
    assert prover.new == 1


def test_threads_share_a_folder(faked):
    """Each has a graph and a store of its own, as compiles in several threads have; they prove the same sites at once."""

    def fn(q, k, v):
        return F.scaled_dot_product_attention(q, k, v)

    like = {n: torch.empty(1, 3, 5, 8, device="meta") for n in "qkv"}
    graphs, proofs = [faked(fn, **like) for _ in range(6)], []

    def work(found):
        proofs.extend(found.prove(found.of("attention")[0]) for _ in range(20))

    threads = [threading.Thread(target=work, args=(found,)) for found in graphs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(p.status, p.note) for p in proofs} == {("proved", "")}
    assert len(proofs) == 120
    (path,) = graphs[0].folder.iterdir()
    assert path.suffix == ".json", "no draft is left"
    last = Prover(Store(graphs[0].folder))
    graphs[0].prove(graphs[0].of("attention")[0], prover=last)
    assert (last.new, last.cached) == (0, 1)
