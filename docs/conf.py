"""How Sphinx builds these pages: `make docs`. Nothing in the result asks the network for anything."""

from pathlib import Path
from typing import Any

project = "fluxrewrite"
author = "the authors of fluxrewrite"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

myst_heading_anchors = 4

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 100

html_theme = "furo"
html_title = "fluxrewrite"
html_static_path = ["static"]
html_css_files = ["fluxrewrite.css"]
html_copy_source = False
html_show_sphinx = False
smartquotes = False
html_show_copyright = False

ROOT = Path(__file__).parents[1]
STANDS_FOR = {"start": "README.md", "contributing": "CONTRIBUTING.md"}
"""Pages that are, on the site, files of the folder above. To whoever reads docs/ itself they are links to these."""


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("source-read", lambda app, page, source: source.__setitem__(0, read(page, source[0])))


def read(page: str, text: str) -> str:
    """The text of a page, with links that hold on the site; index.md's navigation gets the pages that it does not name."""
    if page in STANDS_FOR:
        text = (ROOT / STANDS_FOR[page]).read_text(encoding="utf-8").replace("](docs/", "](")
    for name, file in STANDS_FOR.items():
        text = text.replace(f"](../{file}", f"]({name}.md").replace(f"]({file}", f"]({name}.md")
    if page == "index":
        names = sorted(p.stem for p in Path(__file__).parent.glob("*.md"))
        more = "".join(f"{n}\n" for n in names if n != "index" and f"\n{n}\n" not in text and f" <{n}>\n" not in text)
        text = text.replace("\n```\n", f"\n{more}```\n") if more else text
    return text
