"""SIGTERM and Ctrl-C in a long run: the step in hand is finished, what is done is saved, then it ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Stopped(Exception):
    """A run that was asked to end and has saved its work.

    Parameters
    ----------
    message : str
        One line: at which step, and how to go on.
    status : int
        Exit status: 128 + the signal's number, as shells count.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class StopRequest:
    """Context in which SIGTERM and SIGINT only leave a note; a second Ctrl-C interrupts at once.

    Attributes
    ----------
    signal : signal.Signals or None
        What came.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __enter__(self) -> StopRequest:
        # Python lets only the main thread set handlers; a caller with threads of its own has its own ways
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for s, handler in self._before.items():
            signal.signal(s, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @property
    def status(self) -> int:
        """The exit status that belongs to what came."""
        return 128 + (self.signal or signal.SIGTERM)
