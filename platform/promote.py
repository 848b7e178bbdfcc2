#!/usr/bin/env python
"""Move the alias "champion" to a registered version, through gates; say why when they don't hold."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldseg.commands.registry.promote import main

if __name__ == "__main__":
    sys.exit(main())
