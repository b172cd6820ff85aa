"""Stage of a discovery run: a folder that is done, or goes on where it was."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fastcrystal.relaxation.candidate import Candidate, read_candidates, write_candidates
from fastcrystal.utils.files import write_json

logger = logging.getLogger(__name__)

CANDIDATES = "candidates.jsonl"


class Stage:
    """RUN/NAME: candidates.jsonl when it is done, partial.jsonl while it is at work.

    Parameters
    ----------
    run : Path
    name : str
    """

    def __init__(self, run: Path, name: str) -> None:
        self.folder = run / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self._started = time.monotonic()

    @property
    def partial(self) -> Path:
        """Candidates that are ready, one line each, appended as they come."""
        return self.folder / "partial.jsonl"

    def once(self, make: Callable[[Stage], Iterable[Candidate]], before: Sequence[Candidate] = ()) -> list[Candidate]:
        """The candidates that a former run has finished, or those that `make` makes of the ones `before`, now."""
        if (self.folder / "done.json").is_file():
            return list(read_candidates(self.folder / CANDIDATES))
        return self._finish(list(make(self)), before)

    def _finish(self, out: list[Candidate], before: Iterable[Candidate]) -> list[Candidate]:
        """Write the candidates and mark the stage as done; log what it dropped of those `before`."""
        write_candidates(self.folder / CANDIDATES, out)
        kept = sum(not c.reason for c in out)
        write_json(
            self.folder / "done.json",
            {"candidates": len(out), "kept": kept, "seconds": round(time.monotonic() - self._started, 1)},
        )
        self.partial.unlink(missing_ok=True)
        entered = {c.id for c in before if not c.reason}
        lost = Counter(_kind(c.reason) for c in out if c.reason and c.id in entered).most_common(4)
        logger.info(f"{self.name}: {kept} of {len(out)} candidates go on" + "".join(f"; {n} {why}" for why, n in lost))
        return out


def _kind(reason: str) -> str:
    """A reason without the name of another candidate."""
    return reason.split(" as ")[0][:100]
