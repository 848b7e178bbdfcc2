#!/usr/bin/env python
"""The whole way on one machine: phantoms, search, training, promotion, service, a segmented cohort."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldseg.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
