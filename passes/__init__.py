"""Passes, one to a file or package: what to look for, and which kernel may replace it. The core finds them by entry point."""
