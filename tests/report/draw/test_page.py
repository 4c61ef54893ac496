"""The page: self-contained, escaped, small, quick, and with the figures of the JSON."""

import re
import time
from html.parser import HTMLParser

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.analysis import inspect_spec
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.report.draw.page import frame, page
from fluxrewrite.report.model import CollectiveInfo, Timing
from fluxrewrite.report.summary import highlights


class Reader(HTMLParser):
    """Elements with their attributes, and the text outside scripts and styles. Raises on an element that is not closed."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    def all(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in wanted.items())]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def read(klein):
    return Reader(page(klein))


def table(text, name):
    """Rows of cells of the table with an id, as numbers where a cell has one."""
    body = re.search(rf'<table id="{name}">.*?<tbody>(.*?)</tbody>', text, re.S)[1]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)]
    return [[re.sub(r'<data value="(\d+)">.*?</data>', r"\1", cell) for cell in row] for row in rows]


def test_the_summary_comes_first_with_its_basis(klein, read):
    order = [
        "Summary",
        "nothing was run on hardware",
        "Boundary map",
        "Verdicts",
        "Boundaries, most expensive first",
        "What was found",
    ]
    places = [read.text.index(f" {words}", read.text.index(" All sites ")) for words in order]
    assert places == sorted(places)
    assert "a step is faster: 39.07 ms to 37.01 ms (-5.3%, assumed)" in read.text
    assert "neuronx-cc (assumed)" in read.text


def test_the_page_has_every_fact_of_the_summary(klein, read, of):
    for report, words in ((klein, read.text), (of(broken_up, 192), Reader(page(of(broken_up, 192))).text)):
        found = highlights(report)
        assert found.warnings
        for text in (found.title, *(f"{f.label} {f.text}" for f in found.facts), *found.warnings, found.next.command):
            assert " ".join(text.split()) in words


def test_the_table_of_blocks_is_that_of_the_json(klein):
    rows = table(page(klein), "blocks")
    assert len(rows) == len(klein.blocks)
    for row, block in zip(rows, klein.blocks, strict=True):
        assert [int(n) for n in row[1:3]] == [len(block.before), len(block.after)]
        sizes = [sum(p.reads + p.writes for p in parts) for parts in (block.before, block.after)]
        assert [int(n) for n in row[3:5]] == sizes
        assert block.path in row[0] or not block.path


def test_each_call_has_a_button_and_a_panel_with_the_bytes_of_the_json(klein, read):
    text = page(klein)
    hits = {a["data-site"]: a["data-panel"] for a in read.all("button") if "data-site" in a}
    assert set(hits) == {c.site for c in klein.calls}
    assert all(a.get("aria-label") and a["type"] == "button" for a in read.all("button"))
    for call in klein.calls:
        panel = re.search(rf'<article id="{hits[call.site]}".*?</article>', text, re.S)[0]
        for t in (*call.operands, *call.results):
            assert f'<data value="{t.bytes}">' in panel
            assert t.name in panel
        for b in (b for b in klein.boundaries if b.site == call.site):
            assert f'Barrier: <data value="{b.bytes}">' in panel
            assert all(t.name in panel for t in b.tensors)


def test_all_sites_verdicts_and_choices_are_there(klein, read):
    for site in klein.sites:
        assert site.id in read.text
    for verdict in klein.verdicts:
        assert verdict.why in read.text
    assert len(table(page(klein), "sites")) == len(klein.sites)


def test_collectives_have_a_table_with_their_bytes(klein):
    assert 'id="collectives"' not in page(klein)
    given = {"op": "all_reduce", "graph": 0, "ranks": 4, "shape": (1, 8), "dtype": "bfloat16", "bytes": 16}
    sent = tuple(CollectiveInfo(name=f"n{i}", path=f"blocks.{i}.attn", **given) for i in range(3))
    rows = table(page(klein.model_copy(update={"collectives": sent})), "collectives")
    assert rows == [["3", "all_reduce", "blocks.*.attn", "4", "1x8 bfloat16", "48"]]


def test_nothing_is_fetched(klein, read):
    for tag, attributes in read.tags:
        for name in ("src", "href", "action", "data", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, value)
    text = page(klein)
    assert "@import" not in text
    assert "url(" not in text
    assert set(re.findall(r"https?://[^\"' <]+", text)) <= {"http://www.w3.org/2000/svg"}
    (policy,) = [a["content"] for t, a in read.tags if t == "meta" and a.get("http-equiv")]
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_panels_exist(read):
    ids = [a["id"] for _, a in read.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["data-panel"] for a in read.all("button")} <= set(ids)


def test_names_are_text(evil):
    text = page(evil)
    assert text.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    read = Reader(text)
    assert "<script>alert(1)</script>" in read.text
    assert [t for t, a in read.tags if "onerror" in a or "onload" in a] == []
    assert any("<script>alert(1)</script>" in a.get("data-site", "") for a in read.all("button"))


def refused(x):
    return F.scaled_dot_product_attention(x, x, x)


def broken_up(x):
    y = x.relu()
    torch._dynamo.graph_break()
    return refused(y)


@pytest.mark.parametrize(
    ("fn", "size", "words"),
    [
        (lambda x: x + 1, 16, "no site is rewritten"),
        (refused, 192, "head_size 192"),
        (broken_up, 16, "Graph breaks: each ends an executable"),
        (lambda x: x, 16, "has no blocks to draw"),
    ],
)
def test_odd_reports_make_whole_pages(of, fn, size, words):
    assert words in Reader(page(of(fn, size))).text


def test_a_report_without_predictions_says_so(klein):
    text = Reader(
        page(klein.model_copy(update={"effect": None, "blocks": (), "boundaries": (), "calls": (), "verdicts": ()}))
    ).text
    assert "not predicted: the report has no device to predict for" in text
    assert "has no blocks to draw" in text


def test_equal_reports_make_equal_pages(of):
    zero = Timing(capture_s=0, match_s=0, analyse_s=0, total_s=0, peak_rss_mb=0)
    one, two = (of(refused).model_copy(update={"timing": zero}) for _ in range(2))
    assert page(one) == page(two)


def test_a_notebook_shows_the_page_in_a_frame(evil):
    shown = evil._repr_html_()
    assert shown == frame(evil)
    read = Reader(shown)
    (attributes,) = read.all("iframe")
    assert attributes["srcdoc"] == page(evil)
    assert attributes["sandbox"] == "allow-scripts"
    assert "<script" not in shown


@pytest.mark.slow
def test_flux2_dev_is_under_2_mb_and_2_seconds():
    pytest.importorskip("diffusers")
    report = inspect_spec(find_model("flux2-dev"), Shapes(4096, 512, 1))
    start = time.perf_counter()
    text = page(report)
    assert time.perf_counter() - start < 2
    assert len(text.encode()) < 2_000_000
    assert len([b for b in report.blocks if b.path]) == 56
    assert text.count('class="tile block"') == 56
