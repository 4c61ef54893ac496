"""Kernels, one to a file: canonical op, reference and limits. The core finds them by entry point."""
