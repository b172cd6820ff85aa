"""Set the interpreter before anything imports triton; fixtures that every test may ask for."""

import os
import sys
from collections.abc import Iterator

import torch

if "triton" in sys.modules:
    raise RuntimeError("triton was imported before tests/conftest.py could choose its interpreter")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from fastcrystal.testing import poisoned_buffers

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device of this machine."""
    return str(request.param)


@pytest.fixture
def poison() -> Iterator[None]:
    """NaN in every fresh torch.empty."""
    with poisoned_buffers():
        yield
