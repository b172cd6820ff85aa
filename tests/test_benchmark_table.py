"""benchmarks/table.py on both kinds of result."""

import json
from pathlib import Path

import pytest

from benchmarks import table
from tests.factories.text import unpadded


def test_pytest_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = {
        "name": "test_x",
        "stats": {"median": 0.0012345},
        "extra_info": {"times_reference": 20.125, "device": "cpu"},
    }
    info = {"device": "x86_64", "torch": "2.13", "torch_threads": 2, "cpu": {"brand_raw": "EPYC"}}
    result = {"machine_info": info, "commit_info": {"id": "0123456789abcdef"}, "datetime": "2026-11-23T01:02:03"}
    path = tmp_path / "pbc.json"
    path.write_text(json.dumps({**result, "command": "pytest benchmarks", "benchmarks": [case]}), encoding="utf-8")
    assert table.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "### pbc" in out
    assert "x86_64, EPYC, 2 threads, torch 2.13, commit 0123456789, 2026-11-23" in out
    assert "    pytest benchmarks\n" in out
    assert "| case | ms | times reference |" in unpadded(out)
    assert "| test_x | 1.23 | 20.1 |" in unpadded(out)


def test_gpu_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "machine": {"device": "NVIDIA H200", "capability": "9.0"},
        "checks": {"float32": "ok"},
        "copy_gb_per_s": 4000.0,
        "pbc": [{"batch": 256, "op_ms": 0.5, "ratio_compiled": None}],
    }
    path = tmp_path / "pbc.json"
    path.write_text(json.dumps(result), encoding="utf-8")
    assert table.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "NVIDIA H200, sm 9.0" in out
    assert "| 256 | 0.5 | |" in unpadded(out)
