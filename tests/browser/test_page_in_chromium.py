"""The page in a real browser: nothing fetched, no error, every call can be asked about, and nothing out of place."""

import json
import time

import pytest
import torch
import torch.nn.functional as F
from made_runs import made

from fluxrewrite.report.draw.page import page

pytestmark = pytest.mark.slow
SIZES = [(w, d) for w in (360, 1280, 3840) for d in (False, True)]


def requests(browser):
    """Addresses that were asked for since the page was opened, but for the page itself and data in it."""
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith("file:") for url in asked), "the log of requests is kept"
    return [url for url in asked if not url.startswith(("file:", "data:"))]


def errors(browser):
    return [e["message"] for e in browser.get_log("browser") if e["level"] != "INFO"]


def click(browser, site):
    button = browser.find_element("css selector", f'#map button.hit[data-site="{site}"]')
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    return button


def shown(browser):
    (panel,) = browser.find_elements("css selector", "#detail > article:not([hidden])")
    return panel


def test_klein_has_no_errors_no_requests_and_25_blocks(look, klein_page):
    browser = look(klein_page)
    assert errors(browser) == []
    assert requests(browser) == []
    assert len(browser.find_elements("css selector", "#map .tile.block svg")) == 25


def test_a_click_on_a_kernel_shows_its_tensors_with_the_bytes_of_the_json(look, klein, klein_page):
    browser = look(klein_page)
    data = json.loads(klein.to_json())
    for call in (data["calls"][0], data["calls"][2], data["calls"][-1]):
        button = click(browser, call["site"])
        assert button.get_attribute("aria-pressed") == "true"
        assert browser.find_element("id", "detail-title").text == call["site"]
        tables = shown(browser).find_elements("css selector", "table")
        rows = {
            t.find_element("css selector", "caption").text: [
                (
                    r.find_element("tag name", "th").text.split()[0],
                    int(r.find_element("tag name", "data").get_attribute("value")),
                )
                for r in t.find_elements("css selector", "tbody tr")
            ]
            for t in tables
        }
        assert rows["The call reads"] == [(t["name"], t["bytes"]) for t in call["operands"]]
        assert rows["The call writes"] == [(t["name"], t["bytes"]) for t in call["results"]]
        new = [(t["name"], t["bytes"]) for b in data["boundaries"] if b["site"] == call["site"] for t in b["tensors"]]
        assert rows.get("Tensors now through memory", []) == new
    assert errors(browser) == []


def test_the_map_is_one_stop_of_the_tab_key_and_arrows_walk_it(look, klein, klein_page):
    from selenium.webdriver.common.keys import Keys

    browser = look(klein_page)
    stops = browser.find_elements("css selector", "#map button[tabindex='0']")
    assert len(stops) == 1
    stops[0].send_keys(Keys.ARROW_DOWN)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    focused = browser.switch_to.active_element
    assert focused.get_attribute("data-site") == klein.calls[0].site
    assert shown(browser).is_displayed(), "focus alone shows what is there"
    focused.send_keys(Keys.ENTER)
    assert focused.get_attribute("aria-pressed") == "true"
    focused.send_keys(Keys.ESCAPE)
    assert focused.get_attribute("aria-pressed") == "false"
    focused.send_keys(Keys.END)
    assert browser.switch_to.active_element.get_attribute("class") == "title"
    browser.switch_to.active_element.send_keys(Keys.HOME)
    assert browser.switch_to.active_element == stops[0]


def test_timelines_and_runs_have_the_figures_of_their_files(look, klein, klein_page):
    browser = look(klein_page)
    shown = browser.find_elements("css selector", "article.timeline")
    assert len(shown) == len(klein.timelines) == klein.effect.compile.specialisations
    longest = max(klein.timelines, key=lambda t: t.latency_us * len(t.sites))
    assert [e.text for e in shown[0].find_elements("css selector", ".lanes .percent")] == [
        f"{round(100 * e.busy)}%" for e in longest.engines
    ]
    fill, whole = (shown[0].find_element("css selector", s).size["width"] for s in (".fill", ".busy"))
    assert fill / whole == pytest.approx(longest.engines[0].busy, abs=0.05)
    assert [r.text for r in browser.find_elements("css selector", "#runs tbody th")] == [
        v.name for v in made().variants
    ]
    assert len(browser.find_elements("css selector", ".charts figure svg")) == 2


def test_a_mouse_over_a_kernel_shows_it(look, klein, klein_page):
    from selenium.webdriver import ActionChains

    browser = look(klein_page)
    button = browser.find_elements("css selector", "#map button.hit")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    ActionChains(browser).move_to_element(button).perform()
    assert browser.find_element("id", "detail-title").text == klein.calls[0].site


def test_a_block_shows_its_kernels(look, klein, klein_page):
    browser = look(klein_page)
    title = browser.find_elements("css selector", "#map .tile.block .title")[0]
    title.click()
    rows = shown(browser).find_elements("css selector", "tbody tr")
    block = next(b for b in klein.blocks if b.path)
    assert len(rows) == len(block.before) + len(block.after)
    assert browser.find_element("id", "detail-title").text == block.path


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_nothing_breaks_out_of_the_window(look, klein, klein_page, width, dark, tmp_path):
    browser = look(klein_page, width, dark, height=2160 if width == 3840 else 900)
    click(browser, klein.calls[2].site)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    over = """return Array.from(document.querySelectorAll('main *')).filter(e => {
      const r = e.getBoundingClientRect();
      return r.width && r.right > innerWidth + 1 && !e.closest('.wide, pre');
    }).map(e => e.outerHTML.slice(0, 120))"""
    assert browser.execute_script(over) == []
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(21, 24, 27)" if dark else "rgb(255, 255, 255)")
    assert browser.save_screenshot(str(tmp_path / f"{width}.png"))


@pytest.mark.parametrize("width", [360, 1280])
def test_the_panel_does_not_hide_what_was_chosen_and_a_second_click_closes_it(look, klein, klein_page, width):
    browser = look(klein_page, width)
    button = click(browser, klein.calls[2].site)
    bottom = browser.execute_script("return arguments[0].getBoundingClientRect().bottom", button)
    detail = browser.find_element("id", "detail")
    if width == 360:
        assert bottom <= browser.execute_script("return arguments[0].getBoundingClientRect().top", detail)
    assert "open" in detail.get_attribute("class")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert "open" not in detail.get_attribute("class")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_serious(look, axe, klein, klein_page, width, dark):
    browser = look(klein_page, width, dark)
    for d in browser.find_elements("css selector", "details"):
        browser.execute_script("arguments[0].open = true", d)
    click(browser, klein.calls[0].site)
    # The page allows no other script than its own: axe is run by the debugger, which that does not bind.
    browser.execute_cdp_cmd("Runtime.evaluate", {"expression": axe})
    run = {"expression": "axe.run().then(r => JSON.stringify(r))", "awaitPromise": True, "returnByValue": True}
    found = json.loads(browser.execute_cdp_cmd("Runtime.evaluate", run)["result"]["value"])
    assert len(found["passes"]) > 20
    bad = [(v["id"], v["impact"], [n["html"][:160] for n in v["nodes"][:3]]) for v in found["violations"]]
    assert [v for v in bad if v[1] in ("serious", "critical")] == []


class Attend(torch.nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x).relu()


class Evil(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("<script>alert(1)</script>", Attend())
        self.add_module("<img src=x onerror=alert(1)>", Attend())

    def forward(self, x):
        for name in ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>"):
            x = getattr(self, name)(x.exp())
        return x


def test_names_that_are_markup_are_text(look, page_of):
    browser = look(page_of(Evil(), x=torch.randn(1, 2, 4, 8)))
    assert errors(browser) == []
    assert len(browser.find_elements("css selector", "script")) == 1
    assert browser.find_elements("css selector", "img") == []
    button = browser.find_elements("css selector", "#map button.hit")[0]
    button.click()
    assert "<script>alert(1)</script>" in browser.find_element("id", "detail-title").text
    assert "<img src=x onerror=alert(1)>" in browser.find_element("id", "sites").get_attribute("textContent")


def test_without_scripts_the_tables_stand(look, klein_page, chromium):
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser = look(klein_page)
        assert browser.find_element("css selector", "noscript p").is_displayed()
        assert browser.find_element("id", "h-verdicts").is_displayed()
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_print_opens_the_tables_and_leaves_the_panel_out(look, klein_page):
    browser = look(klein_page)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.find_element("id", "blocks").is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not browser.find_element("id", "detail").is_displayed()
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert len(pdf["data"]) > 50_000
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_flux2_dev_scrolls_without_long_pauses(look, tmp_path):
    pytest.importorskip("diffusers")
    from fluxrewrite.analysis import inspect_spec
    from fluxrewrite.models import Shapes, find_model

    path = tmp_path / "dev.html"
    path.write_text(page(inspect_spec(find_model("flux2-dev"), Shapes(4096, 512, 1))), encoding="utf-8")
    start = time.perf_counter()
    browser = look(path)
    assert time.perf_counter() - start < 5
    browser.set_script_timeout(60)
    browser.execute_cdp_cmd("Performance.enable", {})
    before = metrics(browser)
    gaps = browser.execute_async_script("""
      const done = arguments[0], gaps = []; let last = performance.now();
      const step = (now) => { gaps.push(now - last); last = now; scrollBy(0, 120);
        gaps.length < 90 ? requestAnimationFrame(step) : done(gaps.slice(5)); };
      requestAnimationFrame(step);""")
    after = metrics(browser)
    assert sorted(gaps)[len(gaps) // 2] < 35, "milliseconds of the median frame"
    assert sum(g > 100 for g in gaps) <= 4, gaps
    assert browser.execute_script("return scrollY") > 5000
    # What the page itself costs, whatever else the machine does: scrolling lays nothing out again.
    assert after["LayoutCount"] - before["LayoutCount"] <= 3
    spent = sum(after[n] - before[n] for n in ("LayoutDuration", "RecalcStyleDuration", "ScriptDuration"))
    assert spent / len(gaps) < 0.004, "seconds a frame"


def metrics(browser):
    return {m["name"]: m["value"] for m in browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]}
