"""Debian's Chromium, driven by Selenium. Without them the tests here are skipped; `make test-browser` installs them."""

import shutil
from pathlib import Path

import pytest
from made_runs import made

import fluxrewrite
from fluxrewrite.analysis import inspect_graphs
from fluxrewrite.models import Shapes, find_model
from fluxrewrite.report.draw.page import page
from fluxrewrite.report.timelines import with_timelines

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-default-apps", "--hide-scrollbars",
    "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)  # fmt: skip


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A running Chromium that logs its console and its network."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium; make test-browser installs it")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs chromium and chromedriver; make test-browser installs them on Debian")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def look(chromium):
    """`look(path, width, dark)`: the file in a window of that width, in light or dark; answers the browser."""

    def run(path, width=1280, dark=False, height=900):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.get("about:blank")  # an earlier page may still call a server that has ended
        for log in ("browser", "performance"):
            chromium.get_log(log)
        chromium.get(path.as_uri())
        return chromium

    return run


@pytest.fixture(scope="session")
def klein_graphs():
    """The report on klein-4B and its graphs, traced once for all tests here."""
    pytest.importorskip("diffusers")
    return inspect_graphs(find_model("flux2-klein-4b"), Shapes(256, 512, 1))


@pytest.fixture(scope="session")
def klein(klein_graphs):
    return with_timelines(klein_graphs[0])


@pytest.fixture(scope="session")
def klein_page(klein, tmp_path_factory):
    """The page with all that it can hold: timelines and runs too."""
    path = tmp_path_factory.mktemp("page") / "klein.html"
    path.write_text(page(klein, made()), encoding="utf-8")
    return path


@pytest.fixture
def page_of(tmp_path):
    """`page_of(model, **inputs)`: the page of a model's report."""

    def run(model, **inputs):
        path = tmp_path / "page.html"
        path.write_text(page(fluxrewrite.inspect(model, **inputs)), encoding="utf-8")
        return path

    return run


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core."""
    if not AXE.is_file():
        pytest.skip("needs axe-core; make test-browser installs it")
    return AXE.read_text(encoding="utf-8")
