#!/usr/bin/env python
"""Segment images with their uncertainty: by a model in this process (--model), or by a running service (--url)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldseg.commands.segment import main

if __name__ == "__main__":
    sys.exit(main())
