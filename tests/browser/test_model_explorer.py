"""Our file in the server of ai-edge-model-explorer, and its page in a real browser."""

import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from fluxrewrite.analysis import inspect_graphs
from fluxrewrite.draw.explorer import collection, node_data
from fluxrewrite.models import Shapes, find_model

pytestmark = pytest.mark.slow


@pytest.fixture
def explorer(tmp_path):
    """Address of the page of a server that was given klein-4B's graphs, and their report."""
    pytest.importorskip("model_explorer", reason="needs the extra viz")
    pytest.importorskip("diffusers")
    report, graphs = inspect_graphs(find_model("flux2-klein-4b"), Shapes(256, 512, 1))
    path = tmp_path / "klein.json"
    path.write_text(collection(report, graphs))
    data = []
    for what, text in node_data(graphs).items():
        data.append(tmp_path / f"klein.{what}.json")
        data[-1].write_text(text)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    code = "from model_explorer.cmdline import main; main()"
    paths = ",".join(map(str, data))
    command = [
        sys.executable,
        "-u",
        "-c",
        code,
        str(path),
        "--node_data_paths",
        paths,
        "--no_open_in_browser",
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            yield next(line.strip() for line in server.stdout if line.startswith("http://")), report
        finally:
            server.terminate()


def wait(browser, words, seconds=60):
    """The text of the page once all words stand in it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = browser.find_element("tag name", "body").text
        if all(w in text for w in words):
            return text
        time.sleep(0.5)
    raise AssertionError(f"{words} did not come: {text[:2000]}")


def test_its_page_shows_the_graph_the_node_data_and_the_boundaries(chromium, explorer):
    address, report = explorer
    for _ in range(60):
        try:
            urllib.request.urlopen(address.partition("?")[0], timeout=5).close()
            break
        except OSError:
            time.sleep(0.5)
    chromium.get_log("browser")
    chromium.get(address)
    e = report.effect
    words = [
        "flux2-klein-4b",
        "before",
        f"{report.model.graph_nodes} nodes",
        str(e.bytes_before),
        "bytes moved",
        "microseconds (predicted)",
    ]
    text = wait(chromium, words)
    lines = text.splitlines()
    assert lines[lines.index("kernels") + 1] == str(e.kernels_before)
    button = "return [...document.querySelectorAll('mat-icon')].find(e => e.textContent.trim() === 'polyline')"
    chromium.execute_script("arguments[0].click()", chromium.execute_script(button))
    wait(chromium, ["fluxrewrite", "barrier: newly through memory"])
    errors = [m["message"] for m in chromium.get_log("browser") if m["level"] == "SEVERE"]
    assert [m for m in errors if "fonts.g" not in m and "check_new_version" not in m] == []
