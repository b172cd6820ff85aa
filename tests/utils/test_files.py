"""Files that are whole or not there, and locks that end with their holder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastcrystal.utils.files import try_lock, whole_file

HOLDER = """
import sys, time
from pathlib import Path
from fastcrystal.utils.files import try_lock
lock = try_lock(Path(sys.argv[1]))
print(lock is not None, flush=True)
time.sleep(60)
"""


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert try_lock(path) is None
        holder.kill()
        holder.wait()
    lock = try_lock(path)
    assert lock is not None
    assert try_lock(path) is None  # nor twice in one process
    lock.release()
    again = try_lock(path)
    assert again is not None
    again.release()


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole_file(path) as partial:
        partial.write_text("whole")
    with pytest.raises(UnicodeEncodeError), whole_file(path) as partial, partial.open("w", encoding="ascii") as file:
        file.writelines(["hal", "ä"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "whole"
