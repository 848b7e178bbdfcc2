#!/usr/bin/env python
"""Train one LDSeg on a labelled cohort by Ray Train; the same command again goes on where it stopped."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldseg.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
