"""Lines for people on stderr, which a progress bar leaves whole."""

from __future__ import annotations

import sys

from tqdm import tqdm


def say(text: str) -> None:
    """A line for people, on stderr."""
    tqdm.write(text, file=sys.stderr)
