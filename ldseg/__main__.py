"""`python -m ldseg`: the same as the command `ldseg`."""

import sys

from ldseg.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
