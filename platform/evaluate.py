#!/usr/bin/env python
"""Score a model on a cohort: tables of every case and of the whole, beside the ceiling and the no-diffusion control."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldseg.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
