"""What every suite shares: the machine in the JSON, and a table of ratios at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_check import machine

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the first import of triton

#: keys of extra_info that are ratios begin so
RATIOS = ("ratio_", "speedup_", "times_")
_rows: list[tuple[str, float, dict[str, float]]] = []


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Versions and device, for `--benchmark-json`."""
    machine_info.update(machine("cuda" if torch.cuda.is_available() else "cpu"))
    machine_info["torch_threads"] = torch.get_num_threads()


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """What was typed, beside what was found."""
    option = "--benchmark-json="  # without the folder, which is this machine's
    words = [option + Path(w).name if w.startswith(option) else w for w in sys.argv[1:]]
    output_json["command"] = " ".join(["pytest", *words])


@pytest.fixture(autouse=True)
def _row(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the case's median and ratios for the table."""
    yield
    benchmark: Any = request.node.funcargs.get("benchmark")
    if benchmark is not None and benchmark.stats is not None:
        ratios = {k: float(v) for k, v in benchmark.extra_info.items() if k.startswith(RATIOS)}
        _rows.append((request.node.name, benchmark.stats.stats.median, ratios))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name, median, and each ratio that the case recorded."""
    if not _rows:
        return
    terminalreporter.section("ratios")
    width = max(len(name) for name, _, _ in _rows)
    for name, median, ratios in _rows:
        text = ", ".join(f"{k} {v:.3g}" for k, v in ratios.items())
        terminalreporter.write_line(f"{name:<{width}}  {1e3 * median:>10.3f} ms  {text}".rstrip())
