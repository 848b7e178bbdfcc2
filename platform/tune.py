#!/usr/bin/env python
"""Search for the best LDSeg of a cohort: Ray Tune and Optuna, every trial a Ray Train run logged to MLflow."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldseg.commands.tune import main

if __name__ == "__main__":
    sys.exit(main())
