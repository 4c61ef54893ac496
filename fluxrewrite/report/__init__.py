"""Reports: one set of records, shown as JSON or text."""
