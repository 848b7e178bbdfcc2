#!/usr/bin/env python
"""Register a bundle that lies in a folder, a shipped one too, with its scores on cases it was not trained on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldseg.commands.registry.register import main

if __name__ == "__main__":
    sys.exit(main())
