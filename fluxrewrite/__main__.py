"""`python -m fluxrewrite`, the command line where its script is not on the path, as under torchrun."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
