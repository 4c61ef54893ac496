import json
import re

import pytest
from rich.console import Console

import fluxrewrite
from fluxrewrite import InputError, Options
from fluxrewrite.cli import main
from fluxrewrite.report.diff import DIFF_SCHEMA, diff_reports
from fluxrewrite.report.load import load_report
from fluxrewrite.report.model import BreakInfo, Timing
from fluxrewrite.report.text.diff import rendered_diff


@pytest.fixture(scope="module")
def reports():
    return {}


@pytest.fixture
def small(flux2, reports):
    """`small(tokens, **options)`: the report of a small model; each is made once."""

    def run(tokens=24, **options):
        import torch

        key = (tokens, *sorted(options.items()))
        if key not in reports:
            net, inputs = flux2(num_layers=1, num_single_layers=1)
            if tokens != 24:
                inputs["hidden_states"] = torch.randn(1, tokens, 16)
                inputs["img_ids"] = torch.zeros(1, tokens, 4)
            found = fluxrewrite.inspect(net, options=Options(provider="reference", **options), **inputs)
            reports[key] = found.model_copy(update={"model": found.model.model_copy(update={"image_tokens": tokens})})
        return reports[key]

    return run


def text_of(a, b):
    console = Console(width=80, no_color=True)
    with console.capture() as captured:
        console.print(rendered_diff(diff_reports(a, b), "a.json", "b.json"))
    text = captured.get()
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    return " ".join(text.split())


def names(changes):
    return {c.name: (c.before, c.after) for c in changes}


def test_equal_but_for_timing(small):
    a = small()
    b = a.model_copy(update={"timing": Timing(capture_s=9, match_s=9, analyse_s=9, total_s=9, peak_rss_mb=9)})
    found = diff_reports(a, b)
    assert found.equal
    assert not found.listed
    assert text_of(a, b) == "- a.json + b.json The reports are equal but for timing."


def test_no_kernels_against_all(small):
    a, b = small(policy="none"), small()
    found = diff_reports(a, b)
    taken = {s.id for s in b.sites if s.choice == "kernel"}
    assert found.model == ()
    assert names(found.setup) == {"policy": ("none", "all")}
    gained = {
        s.id for s in found.sites if ("choice", "keep", "kernel") in [(f.name, f.before, f.after) for f in s.fields]
    }
    assert gained == taken
    assert {b.site for b in found.boundaries} == {x.site for x in b.boundaries}
    assert {b.how for b in found.boundaries} == {"added"}
    figures = names(found.figures)
    assert figures["step_after.us"] == (a.effect.step_after.us, b.effect.step_after.us)
    assert figures["bytes_after"] == (a.effect.bytes_after, b.effect.bytes_after)
    back = diff_reports(b, a)
    assert {x.how for x in back.boundaries} == {"removed"}
    assert back.sites[0].reasons != ()
    text = text_of(a, b)
    assert re.search(r"~ 1 x norm_rope_attention at transformer_blocks.\*.attn choice: keep -> kernel", text)
    assert "policy: policy 'none' keeps it" in text
    assert f"Boundaries: {len(found.boundaries)} added" in text


def test_sizes_of_the_model_come_first(small):
    a, b = small(), small(32)
    found = diff_reports(a, b)
    assert names(found.model)["image_tokens"] == (24, 32)
    assert all(names(s.fields)["shapes"][0] != names(s.fields)["shapes"][1] for s in found.sites)
    assert {b.how for b in found.boundaries} <= {"changed"}
    text = text_of(a, b)
    assert text.index("image_tokens 24 32") < text.index("Predicted") < text.index("Sites:")
    assert "sequence=kv_sequence=36" in text
    assert "sequence=kv_sequence=44" in text


def test_sites_lost_and_gained_keep_their_reasons(small):
    a = small(policy="none")
    b = a.model_copy(update={"sites": a.sites[1:]})
    (lost,) = diff_reports(a, b).sites
    assert (lost.how, lost.id, lost.reasons) == ("removed", a.sites[0].id, ("policy: policy 'none' keeps it",))
    (gained,) = diff_reports(b, a).sites
    assert (gained.how, gained.reasons) == ("added", lost.reasons)
    assert f"- 1 x {lost.kind} at {lost.path.replace('.0', '.*')} {lost.form}, eligible, keep; policy:" in text_of(a, b)


def test_changed_boundaries(small):
    a, b = small(), small(regime="lazy")
    found = diff_reports(a, b)
    assert names(found.setup)["regime"] == ("compile", "lazy")
    assert {c.how for c in found.boundaries if not c.call.startswith("layout")} == {"changed"}
    assert all(names(c.fields)["kind"] == ("barrier", "split") for c in found.boundaries)
    assert names(found.figures)["executables after"] == (1, b.segments.after)
    total = sum(x.cost_us for x in b.boundaries) - sum(x.cost_us for x in a.boundaries)
    assert total > 1000
    assert f"together: +{total / 1e3:.2f} ms at boundaries" in text_of(a, b)
    one = a.boundaries[0].model_copy(update={"bytes": a.boundaries[0].bytes + 5})
    (change,) = diff_reports(a, a.model_copy(update={"boundaries": (one, *a.boundaries[1:])})).boundaries
    assert (change.site, names(change.fields)) == (one.site, {"bytes": (one.bytes - 5, one.bytes)})


def test_graph_breaks(small):
    a = small()
    stop = a.boundaries[0].model_copy(update={"site": "", "kind": "split", "path": "m.py:3", "reason": "print"})
    model = a.model.model_copy(update={"graph_breaks": (BreakInfo(reason="print", location="m.py:3"),)})
    b = a.model_copy(update={"boundaries": (*a.boundaries, stop, stop), "model": model})
    (change,) = diff_reports(a, b).boundaries
    assert (change.how, change.call, names(change.fields)["count"]) == ("added", "graph break", (None, 2))
    assert names(diff_reports(a, b).model)["graph_breaks"] == ([], ["m.py:3: print"])
    assert "+ 1 x graph break at m.py:3" in text_of(a, b)


def test_verdicts(small):
    a = small()
    first = a.verdicts[0].model_copy(update={"verdict": "slower", "ratio": 1.5, "basis": "measured"})
    b = a.model_copy(update={"verdicts": (first, *a.verdicts[2:])})
    found = names(diff_reports(a, b).verdicts)
    assert found[first.kernel][1] == "slower 1.5 (measured)"
    assert found[a.verdicts[1].kernel][1] is None


def test_what_is_not_listed_is_not_called_equal(small):
    a = small()
    renamed = a.sites[0].reasons or small(policy="none").sites[0].reasons
    sites = [a.sites[0].model_copy(update={"reasons": tuple(r.model_copy(update={"node": "x"}) for r in renamed)})]
    a = a.model_copy(update={"sites": (a.sites[0].model_copy(update={"reasons": renamed}), *a.sites[1:])})
    b = a.model_copy(update={"sites": (*sites, *a.sites[1:])})
    found = diff_reports(a, b)
    assert not found.equal
    assert not found.listed
    assert "They differ only in what is not listed" in text_of(a, b)


def test_without_predictions(small):
    a = small()
    b = a.model_copy(update={"effect": None, "segments": None, "boundaries": (), "verdicts": ()})
    figures = names(diff_reports(a, b).figures)
    assert figures["bytes_before"] == (a.effect.bytes_before, None)
    assert "bytes_before" in text_of(a, b)


def run(capsys, *args):
    code = main(["diff", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def files(tmp_path, small):
    paths = tmp_path / "a.json", tmp_path / "b.json"
    paths[0].write_text(small(policy="none").to_json())
    paths[1].write_text(small().to_json())
    return paths


def test_command(capsys, monkeypatch, files, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    a, b = files
    code, out, err = run(capsys, a, b)
    assert (code, err) == (0, "")
    assert "policy none all" in " ".join(out.split())
    assert run(capsys, a, b, "--exit-code")[0] == 1
    assert run(capsys, a, a, "--exit-code")[0] == 0
    data = json.loads(run(capsys, a, b, "--format", "json")[1])
    assert (data["schema"], data["equal"]) == (DIFF_SCHEMA, False)
    assert data["setup"] == [{"name": "policy", "before": "none", "after": "all"}]
    assert run(capsys, a, b, "-o", tmp_path / "d.txt")[:2] == (0, "")
    assert "norm_rope_attention" in (tmp_path / "d.txt").read_text()


def test_a_report_reads_back(files, small):
    assert load_report(files[0]) == small(policy="none")


BAD = {
    "not JSON": b"{", "expected value": b"\xff\xfe\x00", "not a report;": b"{}", "not a report": b"[1]",
    "a report; write one with": b"null",
    "a report of fluxrewrite.report/3, but this version reads fluxrewrite.report/2": b'{"schema": "fluxrewrite.report/3"}',
    "of fluxrewrite.report/1, but this version reads fluxrewrite.report/2; write it again with fluxrewrite inspect MODEL": (
        b'{"schema": "fluxrewrite.report/1"}'
    ),
    "not a complete report: model: Field required": b'{"schema": "fluxrewrite.report/2"}',
    "JSON": b"[" * 100_000, "fluxrewrite inspect MODEL": b'{"schema": "fluxrewrite.evidence/1"}', "EOF": b"",
}  # fmt: skip


@pytest.mark.parametrize("problem", BAD)
def test_corrupt_and_foreign_files(capsys, files, tmp_path, problem):
    bad = tmp_path / "bad.json"
    bad.write_bytes(BAD[problem])
    with pytest.raises(InputError, match=re.escape(problem)):
        load_report(bad)
    for pair in ((bad, files[0]), (files[0], bad)):
        code, out, err = run(capsys, *pair)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert str(bad) in err


def test_files_that_are_not_there(capsys, files, tmp_path):
    code, _, err = run(capsys, files[0], tmp_path / "absent.json")
    assert (code, err.count("\n")) == (2, 1)
    assert "absent.json: cannot be read (No such file or directory)" in err
    code, _, err = run(capsys, files[0], tmp_path)
    assert code == 2
    assert "cannot be read (Is a directory)" in err
    assert run(capsys, *files, "-o", tmp_path / "no" / "file")[0] == 2
