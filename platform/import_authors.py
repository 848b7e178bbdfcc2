#!/usr/bin/env python
"""Turn the weight files of the authors of LDSeg into a bundle in faithful mode."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldseg.commands.import_authors import main

if __name__ == "__main__":
    sys.exit(main())
