"""Our file in the server of ai-edge-model-explorer, and its page in a real browser."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
import torch.nn.functional as F

from fluxrewrite.analysis import inspect_graphs
from fluxrewrite.models import Shapes
from fluxrewrite.models.registry import ModelSpec
from fluxrewrite.report.draw.model_explorer import collection, node_data

pytestmark = pytest.mark.slow
EVIL = "<script>alert(1)</script>"


@contextlib.contextmanager
def served(report, graphs, folder):
    """Address of the page of the package's server, which was given these graphs with their node data."""
    pytest.importorskip("model_explorer", reason="needs the extra viz")
    path = folder / "graphs.json"
    path.write_text(collection(report, graphs))
    data = []
    for what, text in node_data(graphs).items():
        data.append(folder / f"graphs.{what}.json")
        data[-1].write_text(text)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    code = "from model_explorer.cmdline import main; main()"
    more = ["--node_data_paths", ",".join(map(str, data)), "--no_open_in_browser", "--port", str(port)]
    command = [sys.executable, "-u", "-c", code, str(path), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            address = next(line.strip() for line in server.stdout if line.startswith("http://"))
            answer(address)
            yield address
        finally:
            server.terminate()


def answer(address):
    """Wait until the server answers."""
    for _ in range(120):
        try:
            return urllib.request.urlopen(address.partition("?")[0], timeout=5).close()
        except OSError:
            time.sleep(0.25)
    raise AssertionError(f"{address} does not answer")


def wait(browser, words, seconds=60):
    """The text of the page once all words stand in it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = browser.find_element("tag name", "body").text
        if all(w in text for w in words):
            return text
        time.sleep(0.2)
    raise AssertionError(f"{words} did not come: {text[:2000]}")


def test_its_page_shows_the_graph_the_node_data_and_the_boundaries(chromium, klein_graphs, tmp_path):
    report, graphs = klein_graphs
    e = report.effect
    words = [
        "flux2-klein-4b",
        "before",
        f"{report.model.graph_nodes} nodes",
        str(e.bytes_before),
        "bytes moved",
        "microseconds (predicted)",
    ]
    with served(report, graphs, tmp_path) as address:
        chromium.get_log("browser")
        chromium.get(address)
        lines = wait(chromium, words).splitlines()
        assert lines[lines.index("kernels") + 1] == str(e.kernels_before)
        button = "return [...document.querySelectorAll('mat-icon')].find(e => e.textContent.trim() === 'polyline')"
        chromium.execute_script("arguments[0].click()", chromium.execute_script(button))
        wait(chromium, ["fluxrewrite", "barrier: now through memory"])
        errors = [m["message"] for m in chromium.get_log("browser") if m["level"] == "SEVERE"]
    assert [m for m in errors if "fonts.g" not in m and "check_new_version" not in m] == []


class Evil(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module(EVIL, torch.nn.Linear(8, 8))

    def forward(self, x):
        return F.scaled_dot_product_attention(getattr(self, EVIL)(x), x, x).relu()


def test_a_name_that_is_markup_is_text_there(chromium, tmp_path):
    spec = ModelSpec(EVIL, lambda shapes, dtype: (Evil(), {"x": torch.randn(1, 2, 8, 8)}))
    report, graphs = inspect_graphs(spec, Shapes(4, 4), torch.float32)
    with served(report, graphs, tmp_path) as address:
        chromium.get(address)
        wait(chromium, [EVIL, "bytes moved"])
        bad = "return [...document.scripts].some(s => s.textContent.includes('alert(1)'))"
        assert not chromium.execute_script(bad)
