"""Reports: one set of records, shown as JSON or text."""

from .build import build_report
from .merged import merge
from .model import SCHEMA, Report, schema_text
from .text import render

__all__ = ["SCHEMA", "Report", "build_report", "merge", "render", "schema_text"]
