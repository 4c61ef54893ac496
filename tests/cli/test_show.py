"""`fluxrewrite show`, and the forms that it shares with `inspect`."""

import json
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from made_runs import content

from fluxrewrite.cli import main

MODULE = """
import torch
import torch.nn.functional as F
class Attend(torch.nn.Module):
    def forward(self, x): return F.scaled_dot_product_attention(x.exp(), x, x).relu()
def attention(): return Attend(), {"x": torch.randn(1, 2, 4, 8)}
"""
SITE = "model.attention.0"


@pytest.fixture(autouse=True)
def saved(tmp_path, monkeypatch):
    (tmp_path / "show_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", "show_models:attention", "--format", "json", "-o", "report.json"]) == 0
    (tmp_path / "runs.json").write_text(json.dumps(content()))
    yield
    sys.modules.pop("show_models", None)


def run(capsys, *args):
    code = main([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, out.err


FORMS = [
    ("text", ()),
    ("json", ()),
    ("html", ()),
    ("svg", ()),
    ("dot", ()),
    ("svg", ("--site", SITE)),
    ("dot", ("--site", SITE)),
]


def still(text, format):
    """The text without what differs between equal runs."""
    if format == "json":
        data = json.loads(text)
        del data["timing"]
        return data
    return re.sub(r"(?i)traced in .*", "", text)


@pytest.mark.parametrize(("format", "more"), FORMS)
def test_a_saved_report_shows_what_inspect_shows(capsys, tmp_path, format, more):
    code, out, _ = run(capsys, "show", "report.json", "--format", format, *more)
    assert code == 0
    code, straight, _ = run(capsys, "inspect", "show_models:attention", "--format", format, *more)
    assert code == 0
    assert still(out, format) == still(straight, format)
    code, printed, _ = run(capsys, "show", "report.json", "--format", format, *more, "-o", "out")
    assert (code, printed) == (0, "")
    assert "attention" in (tmp_path / "out").read_text()


def test_the_picture_of_a_site_is_whole(capsys):
    root = ET.fromstring(run(capsys, "show", "report.json", "--format", "svg", "--site", SITE)[1])
    assert root.get("aria-label") == f"{SITE}: attention:sdpa and its neighbours"


BAD = [
    (("show", "report.json", "--format", "html", "--site", SITE), "--site", "svg or dot"),
    (("show", "report.json", "--site", SITE), "--site", "svg or dot"),
    (("inspect", "show_models:attention", "--site", SITE), "--site", "svg or dot"),
    (("show", "report.json", "--format", "svg", "--site", "model.attention.1"), "no site 'model.attention.1'", SITE),
    (("show", "report.json", "--format", "model-explorer"), "model-explorer", "svg"),
    (("show", "absent.json"), "absent.json", "cannot be read"),
    (("show", "show_models.py"), "show_models.py", "not JSON"),
    (("show", "report.json", "-o", "no/such/file"), "no/such", "does not exist"),
    (
        ("show", "report.json", "--runs", "absent.json", "--format", "html"),
        "absent.json: cannot be read",
        "bench MODEL --save",
    ),
    (("show", "report.json", "--runs", "report.json"), "report.json: schema", "bench MODEL --save"),
    (
        ("inspect", "show_models:attention", "--runs", "show_models.py"),
        "show_models.py:2:1: not JSON",
        "bench MODEL --save",
    ),
    (
        ("show", "report.json", "--runs", "runs.json", "--format", "json"),
        "--runs runs.json",
        "text or html, not with json",
    ),
    (
        ("inspect", "show_models:attention", "--runs", "runs.json", "--format", "model-explorer"),
        "--runs",
        "text or html",
    ),
    (("show", "report.json", "--timelines", "--format", "svg"), "--timelines", "text, html or json, not with svg"),
    (("inspect", "show_models:attention", "--timelines", "--device", "cpu"), "on cpu", "trn1, trn2, trn3"),
    (("show", "old.json", "--format", "svg"), "no blocks to draw", "write it again"),
    (("show", "old.json", "--format", "dot"), "no blocks to draw", "write it again"),
]


@pytest.mark.parametrize(("args", "wrong", "remedy"), BAD, ids=lambda a: " ".join(a) if isinstance(a, tuple) else "")
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, args, wrong, remedy):
    data = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps({k: v for k, v in data.items() if k not in ("blocks", "calls")}))
    code, out, err = run(capsys, *args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert wrong in err
    assert remedy in err


def test_a_report_of_an_older_make_has_a_page_that_says_what_is_missing(capsys, tmp_path):
    data = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps({k: v for k, v in data.items() if k not in ("blocks", "calls")}))
    code, out, _ = run(capsys, "show", "old.json", "--format", "html")
    assert code == 0
    assert "has no blocks to draw; write it again" in out


def test_runs_and_timelines_are_in_text_and_page(capsys, tmp_path):
    code, text, _ = run(capsys, "show", "report.json", "--runs", "runs.json", "--timelines")
    assert code == 0
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "These runs are not of what the report is about: model flux2-klein-mini" in text
    assert re.search(r"^qkv +4 +0.9000 ", text, re.M)
    assert "Kernels on their engines (modelled by the emulator, no hardware)" in text
    assert text.index("\nNext ") < text.index("Measured runs") < text.index("Kernels on their engines")
    code, page, _ = run(capsys, "show", "report.json", "--runs", "runs.json", "--timelines", "--format", "html")
    assert code == 0
    assert page.count('<table id="runs">') == 1
    assert "Modelled by the emulator, no hardware." in page
    code, plain, _ = run(capsys, "show", "report.json", "--format", "html")
    assert (code, 'id="runs"' in plain, "Modelled by the emulator" in plain) == (0, False, False)


def test_timelines_are_kept_in_the_report(capsys, tmp_path):
    code, _, _ = run(capsys, "inspect", "show_models:attention", "--timelines", "--format", "json", "-o", "timed.json")
    assert code == 0
    (timeline,) = json.loads((tmp_path / "timed.json").read_text())["timelines"]
    assert timeline["sites"] == [SITE]
    page = run(capsys, "show", "timed.json", "--format", "html")[1]
    shares = [int(n) for n in re.findall(r'<span class="percent">(\d+)%', page)]
    assert shares == [round(100 * e["busy"]) for e in timeline["engines"]]
    assert page.count('class="lane"') == len(shares) == 5
