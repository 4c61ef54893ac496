import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import fluxrewrite
from fluxrewrite import Options
from fluxrewrite.report import model


def test_schema_file_is_up_to_date():
    path = Path(model.__file__).parent / "schema.json"
    assert path.read_text() == model.schema_text(), "run: make schema"


def test_json_has_the_keys_of_the_contract_and_reads_back(flux2):
    net, inputs = flux2()
    report = fluxrewrite.inspect(net, **inputs)
    data = json.loads(report.to_json())
    assert set(data) == {
        "schema", "model", "timing", "inventory", "sites", "boundaries", "collectives", "segments", "effect", "summary", "verdicts",
        "artifacts", "timelines", "blocks", "calls",
    }  # fmt: skip
    assert {"name", "parameters", "dtype", "tp", "image_tokens", "text_tokens", "graphs", "graph_nodes"} <= set(
        data["model"]
    )
    assert set(data["timing"]) == {
        "capture_s", "match_s", "analyse_s", "total_s", "peak_rss_mb", "proof_s", "proofs_new", "proofs_cached",
    }  # fmt: skip
    assert {"id", "kind", "form", "path", "status", "reasons", "shapes", "choice", "kernel", "proof"} <= set(
        data["sites"][0]
    )
    assert {s["proof"]["status"] for s in data["sites"] if s["status"] == "eligible"} == {"proved"}
    assert data["inventory"]["attention"] == 4
    assert data["inventory"]["linear"] == sum(1 for m in net.modules() if type(m).__name__ == "Linear")
    assert model.Report.model_validate_json(report.to_json()) == report


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError):
        model.Timing(capture_s=0, match_s=0, analyse_s=0, total_s=0, peak_rss_mb=0, extra=1)


def test_inspect_leaves_names_free_for_the_model():
    import torch

    def fn(kernels, options):
        return torch.nn.functional.scaled_dot_product_attention(kernels, options, options)

    x = torch.randn(1, 2, 4, 8)
    report = fluxrewrite.inspect(fn, {"kernels": x, "options": x}, options=Options(kernels="attention"))
    assert report.summary.kinds["attention"].rewritten == 1


def test_peak_memory_is_not_that_of_the_program_that_started_this_one():
    ballast = b"x" * 900_000_000
    code = "from fluxrewrite.analysis import peak_rss_mb; import sys; sys.stdout.write(str(peak_rss_mb()))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert len(ballast) / 1e6 > float(out) > 50
