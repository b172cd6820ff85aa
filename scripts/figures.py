"""The command `fastcrystal figures` as a script."""

import sys

from fastcrystal.cli.app import script

if __name__ == "__main__":
    sys.exit(script("figures"))
