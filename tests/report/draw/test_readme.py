"""The picture of README.md."""

import re
from pathlib import Path

from fluxrewrite.report.draw.svg import map_svg

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


def test_the_picture_is_up_to_date(klein):
    (path,) = re.findall(r"!\[.*?\]\((docs/.*?\.svg)\)", README)
    assert (ROOT / path).read_text(encoding="utf-8") == map_svg(klein), "run: make map"
