"""`python -m fastcrystal`: the command `fastcrystal`."""

import sys

from fastcrystal.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
