"""SVG and DOT say what the JSON says, and show names as text."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import pytest
import torch.nn.functional as F

from fluxrewrite.errors import InputError
from fluxrewrite.report.draw.dot import map_dot, near_dot
from fluxrewrite.report.draw.neighbourhood import near, near_svg, site_of
from fluxrewrite.report.draw.page import page
from fluxrewrite.report.draw.svg import map_svg

SVG = "{http://www.w3.org/2000/svg}"
QKV = "transformer_blocks.0.attn.qkv.1"


def blocks_of_json(report):
    """path, kernels and bytes before, kernels and bytes after of each block."""
    data = json.loads(report.to_json())

    def size(parts):
        return len(parts), sum(p["reads"] + p["writes"] for p in parts)

    return [(b["path"], *size(b["before"]), *size(b["after"])) for b in data["blocks"]]


FIGURES = ("kernels_before", "bytes_before", "kernels_after", "bytes_after")


def test_svg_and_dot_have_the_figures_of_the_json(klein):
    wanted = blocks_of_json(klein)
    root = ET.fromstring(map_svg(klein))
    groups = [g for g in root.iter(f"{SVG}g") if "data-block" in g.attrib]
    found = [(g.get("data-block"), *(int(g.get(f"data-{f.replace('_', '-')}")) for f in FIGURES)) for g in groups]
    assert found == wanted
    text = map_dot(klein)
    clusters = text.split("subgraph ")[1:]
    found = [
        (re.search(r'\bblock="(.*)";', c)[1], *(int(re.search(rf'{f}="(\d+)"', c)[1]) for f in FIGURES))
        for c in clusters
    ]
    assert found == wanted


def test_page_svg_dot_and_json_agree_on_the_totals(klein):
    names = [f"{what}_{when}" for what in ("kernels", "bytes") for when in ("before", "after")]
    markup, dot = map_svg(klein), map_dot(klein)
    svg = {n: sum(map(int, re.findall(f'data-{n.replace("_", "-")}="([0-9]+)"', markup))) for n in names}
    lines = {n: sum(map(int, re.findall(f'^ *{n}="([0-9]+)"', dot, re.M))) for n in names}
    table = re.search(r'<table id="blocks">.*?</table>', page(klein), re.S)[0]
    rows = [re.findall(r'<td class="n">(?:<data value=")?([0-9]+)', r) for r in table.split("<tr>")[2:]]
    html = dict(zip(names, (sum(int(r[i]) for r in rows) for i in range(4)), strict=True))
    data = json.loads(klein.to_json())
    whole = {n: 0 for n in names}
    for block in data["blocks"]:
        for when in ("before", "after"):
            whole[f"kernels_{when}"] += len(block[when])
            whole[f"bytes_{when}"] += sum(p["reads"] + p["writes"] for p in block[when])
    assert whole == svg == lines == html
    assert whole == {n: data["effect"][n] for n in names}
    new = sum(b["bytes"] for b in data["boundaries"])
    assert new == sum(map(int, re.findall('data-new="([0-9]+)"', markup)))
    assert new == sum(map(int, re.findall(' bytes="([0-9]+)"', dot)))


def test_each_bar_and_each_mark_has_the_bytes_of_the_json(klein):
    root = ET.fromstring(map_svg(klein))
    bars = [int(g.get("data-bytes")) for g in root.iter(f"{SVG}g") if "data-bytes" in g.attrib]
    assert sum(bars) == klein.effect.bytes_before + klein.effect.bytes_after
    marks = {g.get("data-site"): int(g.get("data-new")) for g in root.iter(f"{SVG}g") if "data-site" in g.attrib}
    assert marks == {b.site: b.bytes for b in klein.boundaries}
    edges = re.findall(r'kind="(\w+)", bytes="(\d+)"', map_dot(klein))
    assert [int(size) for _, size in edges] == [b.bytes for b in klein.boundaries]
    assert {kind for kind, _ in edges} == {"barrier"}


def test_the_neighbourhood_has_the_bytes_of_the_call(klein):
    found = near(klein, site_of(klein, QKV))
    call = next(c for c in klein.calls if c.site == QKV)
    root = ET.fromstring(near_svg(found))
    sizes = [int(g.get("data-bytes")) for g in root.iter(f"{SVG}g") if "data-bytes" in g.attrib]
    operands, results = sum(t.bytes for t in call.operands), sum(t.bytes for t in call.results)
    assert sum(sizes) == operands + results + results  # the one user reads them all
    assert [int(n) for n in re.findall(r'bytes="(\d+)"', near_dot(found))] == [
        results,
        *(s for s in sizes if s != results),
        results,
    ]
    (border,) = [b for b in klein.boundaries if b.site == QKV]
    assert [(link.name, link.bytes) for link in found.before if link.new] == [(t.name, t.bytes) for t in border.tensors]
    assert "edge new" in near_svg(found)


def test_lost_fusions_are_drawn(flux2):
    import fluxrewrite
    from fluxrewrite import Options

    net, inputs = flux2()
    report = fluxrewrite.inspect(net, options=Options(kernels="rope", compiler="inductor"), **inputs)
    border = next(b for b in report.boundaries if b.lost_fusions)
    found = near(report, site_of(report, border.site))
    ends = {link.name for link in (*found.before, *found.after) if link.lost}
    assert ends
    assert ends <= {name for f in border.lost_fusions for name in (f.producer, f.consumer)}
    assert " lost" in near_svg(found)
    assert 'style="dashed"' in near_dot(found)


def test_a_site_without_a_call_is_drawn_alone(klein):
    found = near(klein, site_of(klein, "transformer_blocks.0.attn.rope.0"))
    assert found.call is None
    assert "no kernel call" in near_svg(found)
    assert "no kernel call" in near_dot(found)


def test_an_unknown_site_names_close_ones(klein, of):
    with pytest.raises(
        InputError, match=r"no site 'transformer_blocks.0.attn.qkv.7' .*close ids: transformer_blocks.0.attn.qkv.[01], "
    ):
        site_of(klein, "transformer_blocks.0.attn.qkv.7")
    with pytest.raises(InputError, match="close ids: transformer_blocks"):
        site_of(klein, "%%%%")
    with pytest.raises(InputError, match="the report has no sites"):
        site_of(of(lambda x: x + 1), "x")


def test_names_are_text_in_svg_and_dot(evil):
    markup = map_svg(evil)
    root = ET.fromstring(markup)
    assert "<script" not in markup
    texts = "".join(t.text or "" for t in root.iter(f"{SVG}text"))
    assert "<script>alert(1)</script>\"'&" in texts
    site = evil.calls[0].site
    assert "<script" not in near_svg(near(evil, site_of(evil, site)))
    dot = map_dot(evil)
    assert dot.startswith('digraph "<script>alert(1)</script>\\"\'&" {')
    assert "label=<" not in dot


def test_equal_reports_make_equal_pictures(of):
    def fn(x):
        return F.scaled_dot_product_attention(x.exp(), x, x).relu()

    one, two = of(fn), of(fn)
    assert map_svg(one) == map_svg(two)
    assert map_dot(one) == map_dot(two)


def test_strings_of_dot_are_quoted():
    from fluxrewrite.report.draw.dot import quoted

    assert quoted('a"b\\n\nc') == '"a\\"b\\\\n\\nc"'


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz's dot")
def test_graphviz_reads_it(klein, evil):
    for text in (map_dot(klein), map_dot(evil), near_dot(near(klein, site_of(klein, QKV)))):
        done = subprocess.run(["dot", "-Tcanon"], input=text, text=True, capture_output=True, check=True)
        assert done.stderr == ""
