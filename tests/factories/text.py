"""What a command printed, for comparison."""

from __future__ import annotations

import re


def unpadded(text: str) -> str:
    """Text whose runs of spaces are one space: the width of a table's columns depends on its longest cell."""
    return re.sub(" +", " ", text)
