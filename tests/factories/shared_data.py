"""Where the real structures are that some tests use; they are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def data_folder() -> Path:
    """The folder of real structures, or skip: $FASTCRYSTAL_TEST_DATA, else shared/data beside the repository."""
    named = os.environ.get("FASTCRYSTAL_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real structures: no folder {folder} (set FASTCRYSTAL_TEST_DATA to one)")
    return folder


def dft_file() -> Path:
    """46,055 DFT structures in the layout of CrystalDataset, or skip."""
    path = data_folder() / "dft_structures.npz"
    if not path.is_file():
        pytest.skip(f"needs real structures: no {path} (set FASTCRYSTAL_TEST_DATA to the folder that has it)")
    return path
