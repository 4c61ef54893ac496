"""Links of README.md, CONTRIBUTING.md and docs/ as GitHub follows them, and the site that `make docs` builds."""

import importlib.util
import re
from pathlib import Path

import pytest
from documented import PAGES, ROOT

FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def anchors(path):
    """The anchors that GitHub makes of the headings of a page."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return found


def broken(path):
    """Links of a page that lead nowhere."""
    for link in LINK.findall(FENCE.sub("", path.read_text())):
        file, _, anchor = link.partition("#")
        if file.startswith(("https://", "http://")):
            continue
        target = path.parent / file if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    assert not list(broken(page))


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "b.md").write_text("# A heading: of `two`\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[x](b.md#a-heading-of-two) [x](b.md#no) ![x](c.svg)\n```sh\n[x](no.md)\n```\n[x](#here)\n## Here\n"
    )
    assert list(broken(page)) == ["b.md#no", "c.svg"]


def test_the_readme_is_short_and_has_no_link_into_a_machine():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") < 260
    assert not re.findall(r"\]\(/|\]\(file:", text)


@pytest.fixture
def conf():
    spec = importlib.util.spec_from_file_location("docs_conf", ROOT / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation(conf):
    index = conf.read("index", (ROOT / "docs" / "index.md").read_text())
    names = index.partition("```{toctree}")[2].partition("```")[0].split()
    named = {n.strip("<>") for n in names}
    assert {p.stem for p in (ROOT / "docs").glob("*.md")} - {"index"} <= named


def test_the_readme_is_a_page_of_the_site(conf):
    page = conf.read("start", (ROOT / "docs" / "start.md").read_text())
    assert page.startswith("# fluxrewrite\n")
    for link in LINK.findall(FENCE.sub("", page)):
        file = link.partition("#")[0]
        assert not file or file.startswith("https://") or (ROOT / "docs" / file).exists(), link


def test_ci_builds_the_site():
    assert "make docs\n" in (ROOT / ".ci" / "run").read_text()
    assert "-W" in (ROOT / "Makefile").read_text().partition("\ndocs:")[2].partition("\n\n")[0]
    assert Path(ROOT / "docs" / "conf.py").exists()
