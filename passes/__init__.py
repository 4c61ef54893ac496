"""One rewrite a file: what to look for, and which kernel may replace it. The core finds them by entry point."""
