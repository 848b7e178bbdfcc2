#!/usr/bin/env python
"""Calibrate a model on held-out cases: intervals that cover the truth, probabilities as sure as they are right."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldseg.commands.calibrate import main

if __name__ == "__main__":
    sys.exit(main())
