"""The terminal and the page show the same facts: both read the modules of `report` itself, and neither reads the other."""

from documented import ROOT
from import_graph import arrows

APART = ("fluxrewrite.report.text", "fluxrewrite.report.draw")


def crossing(found):
    """Imports from one of the two packages into the other."""
    pairs = (APART, APART[::-1])
    return [a for a in found for one, other in pairs if a.importer.startswith(one) and a.imported.startswith(other)]


def test_neither_imports_the_other():
    found = arrows(ROOT)
    for package in APART:
        assert any(a.importer.startswith(package) and a.imported == "fluxrewrite.report.summary" for a in found)
    assert not crossing(found), "\n".join(map(str, crossing(found)))


def test_a_planted_import_is_found(tmp_path):
    for package, line in (
        ("draw", "from ..text.grid import grid\n"),
        ("text", "def f():\n    from ..draw import svg\n"),
    ):
        folder = tmp_path / "fluxrewrite" / "report" / package
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / "bad.py").write_text(line)
    (tmp_path / "fluxrewrite" / "report" / "text" / "grid.py").write_text("grid = 1\n")
    (tmp_path / "fluxrewrite" / "report" / "draw" / "svg.py").write_text("svg = 1\n")
    assert len(crossing(arrows(tmp_path))) == 2
