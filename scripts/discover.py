"""The command `fastcrystal discover` as a script."""

import sys

from fastcrystal.cli import script

if __name__ == "__main__":
    sys.exit(script("discover"))
