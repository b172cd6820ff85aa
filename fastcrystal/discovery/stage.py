"""A stage of a run: a folder that is done, or goes on where it was."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from fastcrystal.relaxation.candidate import Candidate, read_candidates, write_candidates
from fastcrystal.utils.files import cut_broken_line, write_json
from fastcrystal.utils.progress import progress_bar

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
    def is_done(self) -> bool:
        """Whether a run before this one has finished it."""
        return (self.folder / "done.json").is_file()

    @property
    def partial(self) -> Path:
        """Candidates that are ready, one line each, appended as they come."""
        return self.folder / "partial.jsonl"

    def read(self) -> list[Candidate]:
        """The candidates of a finished stage."""
        return list(read_candidates(self.folder / CANDIDATES))

    def finish(self, candidates: Iterable[Candidate], before: Iterable[Candidate] = ()) -> list[Candidate]:
        """Write the candidates and mark the stage as done; say what it dropped of those that came in `before`."""
        out = list(candidates)
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

    def one_by_one(self, waiting: list[Candidate], work: Iterator[Candidate] | None, unit: str) -> dict[str, Candidate]:
        """Collect candidates in any order, each written down at once; a killed run does not make them again.

        Parameters
        ----------
        waiting : list of Candidate
            All that are wanted.
        work : iterator of Candidate, optional
            Makes those that `missing` returned.
        unit : str
            For the progress bar.
        """
        done = {c.id: c for c in read_candidates(self.partial)}
        with (
            self.partial.open("a", encoding="utf-8") as out,
            progress_bar(total=len(waiting), initial=len(done), unit=unit, desc=self.name) as bar,
        ):
            for c in work or ():
                done[c.id] = c
                out.write(c.to_json() + "\n")
                out.flush()
                bar.update()
        return done

    def missing(self, waiting: list[Candidate]) -> list[Candidate]:
        """Those that a killed run has not made."""
        cut_broken_line(self.partial)
        done = {c.id for c in read_candidates(self.partial)}
        return [c for c in waiting if c.id not in done]


def _kind(reason: str) -> str:
    """A reason without the name of another candidate."""
    return reason.split(" as ")[0][:100]
