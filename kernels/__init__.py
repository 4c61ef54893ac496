"""One kernel a file: canonical op, reference, limits and NKI source. The core finds them by entry point."""
