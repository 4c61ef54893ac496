"""JSON for Model Explorer: whole graphs, the figures of the report, and the form that the package itself writes."""

import json

import pytest
import torch

from fluxrewrite import Options
from fluxrewrite.analysis import inspect_graphs
from fluxrewrite.fusion.boundary.planned_graph import PlannedGraph
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.report.draw.model_explorer import collection, node_data

SHAPES = Shapes(256, 512, 1)


@pytest.fixture(scope="session")
def klein_graphs():
    pytest.importorskip("diffusers")
    return inspect_graphs(find_model("flux2-klein-4b"), SHAPES)


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """`shown(source, **options)`: report, collection and node data of `make()` in a module of that source."""

    def run(source, **options):
        head = "import torch\nimport torch.nn.functional as F\n"
        (tmp_path / f"explored_{abs(hash(source))}.py").write_text(head + source)
        monkeypatch.syspath_prepend(tmp_path)
        spec = find_model(f"explored_{abs(hash(source))}:make")
        report, graphs = inspect_graphs(spec, SHAPES, torch.float32, Options(**options))
        return report, json.loads(collection(report, graphs)), {k: json.loads(v) for k, v in node_data(graphs).items()}

    return run


HALVES = """
class Halves(torch.nn.Module):
    def forward(self, x):
        y = x.relu()
        torch._dynamo.graph_break()
        return F.scaled_dot_product_attention(y.exp(), y, y).relu()
def make(): return Halves(), {"x": torch.randn(1, 2, 8, 16)}
"""


def check_whole(data):
    """Ids are unique and every edge, drawn over or not, has both ends."""
    for graph in data["graphs"]:
        ids = [n["id"] for n in graph["nodes"]]
        assert len(ids) == len(set(ids))
        known = set(ids)
        assert {e["sourceNodeId"] for n in graph["nodes"] for e in n["incomingEdges"]} <= known
        for shown in graph["tasksData"].get("edgeOverlaysDataListLeftPane", []):
            for overlay in shown["overlays"]:
                assert {e[k] for e in overlay["edges"] for k in ("sourceNodeId", "targetNodeId")} <= known


def test_graphs_overlays_and_node_data_have_the_figures_of_the_report(klein_graphs):
    report, graphs = klein_graphs
    data = json.loads(collection(report, graphs))
    assert data["label"] == "flux2-klein-4b"
    assert [g["id"] for g in data["graphs"]] == ["before", "after"]
    assert len(data["graphs"][0]["nodes"]) == report.model.graph_nodes
    check_whole(data)
    values = {k: json.loads(v) for k, v in node_data(graphs).items()}
    e = report.effect
    for when, step, size, kernels in (
        ("before", e.step_before, e.bytes_before, e.kernels_before),
        ("after", e.step_after, e.bytes_after, e.kernels_after),
    ):
        assert sum(r["value"] for r in values["bytes"][when]["results"].values()) == size
        assert sum(r["value"] for r in values["us"][when]["results"].values()) == pytest.approx(step.us, rel=1e-4)
        graph = next(g for g in data["graphs"] if g["id"] == when)
        assert graph["groupNodeAttributes"][""]["bytes"] == str(size)
        assert graph["groupNodeAttributes"][""]["kernels"] == str(kernels)
        assert {n for n in values["bytes"][when]["results"]} <= {n["id"] for n in graph["nodes"]}
    (shown,) = data["graphs"][1]["tasksData"]["edgeOverlaysDataListRightPane"]
    (barriers,) = shown["overlays"]
    assert barriers["name"] == "barrier: now through memory"
    sizes = [int(edge["label"].rpartition("(")[2].removesuffix(" B)")) for edge in barriers["edges"]]
    assert sum(sizes) == sum(b.bytes for b in report.boundaries)


def test_nodes_lie_in_the_modules_that_they_were_traced_in(klein_graphs):
    report, graphs = klein_graphs
    after = json.loads(collection(report, graphs))["graphs"][1]
    nodes = {n["id"]: n for n in after["nodes"]}
    for call in report.calls:
        node = nodes[call.name]
        assert node["label"].startswith("fluxrewrite.")
        assert {"key": "site", "value": call.site} in node["attrs"]
        assert call.site.startswith(node["namespace"].replace("/", "."))
        assert node["style"]["borderColor"]
    call = report.calls[0]
    shapes = [a["value"] for o in nodes[call.name]["outputsMetadata"] for a in o["attrs"]]
    assert shapes == [f"{t.dtype}[{','.join(map(str, t.shape))}]" for t in call.results]


def test_several_graphs_are_told_apart_and_a_slash_makes_no_level(shown):
    report, data, values = shown(HALVES)
    names = ["graph 0 before", "graph 0 after", "graph 1 before", "graph 1 after"]
    assert [g["id"] for g in data["graphs"]] == names
    assert list(values["bytes"]) == names
    check_whole(data)
    assert report.model.graphs == 2
    from fluxrewrite.report.draw.model_explorer import _space

    assert _space("a/b.0") == "a|b/0"


def test_lost_fusions_are_an_overlay_of_the_graph_before():
    pytest.importorskip("diffusers")
    options = Options(kernels="rope", compiler="inductor")
    report, graphs = inspect_graphs(find_model("flux2-klein-mini"), SHAPES, torch.float32, options)
    data = json.loads(collection(report, graphs))
    check_whole(data)
    (shown,) = data["graphs"][0]["tasksData"]["edgeOverlaysDataListLeftPane"]
    (lost,) = shown["overlays"]
    assert lost["name"] == "lost fusions"
    assert len(lost["edges"]) == sum(len(b.lost_fusions) for b in report.boundaries) > 0


def test_what_was_not_predicted_is_shown_as_traced(klein_graphs):
    report, graphs = klein_graphs
    bare = [PlannedGraph(graphs[0].view, graphs[0].plan)]
    data = json.loads(collection(report, bare))
    assert [g["id"] for g in data["graphs"]] == ["before"]
    assert node_data(bare) == {"bytes": "{}\n", "us": "{}\n"}


def test_the_same_bytes_each_time(shown):
    assert shown(HALVES)[1:] == shown(HALVES)[1:]


def test_the_command_writes_node_data_beside_the_graphs(tmp_path, monkeypatch, capsys):
    from fluxrewrite.cli import main

    (tmp_path / "explored_cli.py").write_text("import torch\nimport torch.nn.functional as F\n" + HALVES)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "graphs.json"
    assert main(["inspect", "explored_cli:make", "--format", "model-explorer", "-o", str(path)]) == 0
    assert sorted(p.name for p in tmp_path.glob("graphs*")) == ["graphs.bytes.json", "graphs.json", "graphs.us.json"]
    assert main(["inspect", "explored_cli:make", "--format", "model-explorer"]) == 0
    assert capsys.readouterr().out == path.read_text()


@pytest.mark.slow
def test_the_package_itself_reads_graphs_and_node_data(klein_graphs):
    dacite = pytest.importorskip("dacite", reason="needs the extra viz")
    builder = pytest.importorskip("model_explorer.graph_builder", reason="needs the extra viz")
    from model_explorer.node_data_builder import GraphNodeData

    report, graphs = klein_graphs
    strict = dacite.Config(strict=True)
    read = dacite.from_dict(builder.GraphCollection, json.loads(collection(report, graphs)), strict)
    assert [len(g.nodes) for g in read.graphs] == [len(a.view.nodes) for a in graphs[0].change.graphs]
    for text in node_data(graphs).values():
        for values in json.loads(text).values():
            assert dacite.from_dict(GraphNodeData, values, strict).results
