#!/usr/bin/env python
"""Serve a model over HTTP on this machine (or on the cluster that RAY_ADDRESS names) until Ctrl-C."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldseg.commands.serve import main

if __name__ == "__main__":
    sys.exit(main())
