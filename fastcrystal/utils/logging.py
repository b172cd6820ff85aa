"""Messages of the package, through the standard `logging`, as the command line shows them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _PlainLines(logging.Handler):
    """Plain lines on stderr, written around progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Inside the `with`, messages of the package from INFO on are plain lines on stderr, and nothing else."""
    logger = logging.getLogger("fastcrystal")
    handler, level, propagate = _PlainLines(), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a handler that some library gave the root logger would show the message again
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
