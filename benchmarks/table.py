"""Results as Markdown: what `pytest --benchmark-json` and benchmarks/gpu.sh wrote.

python benchmarks/table.py benchmarks/results/MACHINE/*.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcrystal.utils.tables import markdown_table


def main(argv: Sequence[str] | None = None) -> int:
    """Print one section per file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="JSON files")
    for path in parser.parse_args(argv).files:
        result = json.loads(path.read_text(encoding="utf-8"))
        print(f"### {path.stem}\n\n{heading(result)}\n")
        print(table(rows(result)))
    return 0


def heading(result: dict[str, Any]) -> str:
    """Machine, versions, and, where recorded, commit and date."""
    info = result.get("machine_info", result.get("machine", {}))
    cpu = info.get("cpu", {}).get("brand_raw")
    names = [info.get("device"), cpu, info.get("capability") and f"sm {info['capability']}"]
    versions = [f"{name} {info[name]}" for name in ("torch", "triton", "numba", "numpy") if info.get(name)]
    threads = f"{info['torch_threads']} threads" if "torch_threads" in info else None
    commit, date = result.get("commit_info", {}).get("id", "")[:10], result.get("datetime", "")[:10]
    parts = [*names, threads, *versions, commit and f"commit {commit}", date]
    command = f"\n\n    {result['command']}" if "command" in result else ""
    return ", ".join(str(part) for part in parts if part) + command


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat dictionary per case."""
    if "benchmarks" not in result:
        return [row for name, part in result.items() if name not in ("machine", "checks") for row in listed(part)]
    out = []
    for case in result["benchmarks"]:
        extra = {k: v for k, v in case["extra_info"].items() if k.startswith(("times_", "speedup_", "ratio_"))}
        name = case["extra_info"].get("title", case["name"])
        out.append({"case": name, "ms": 1e3 * case["stats"]["median"], **extra})
    return out


def listed(part: Any) -> list[dict[str, Any]]:
    """Of a gpu_*.json: its lists of rows."""
    return part if isinstance(part, list) and all(isinstance(row, dict) for row in part) else []


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, a column for every key that some row has."""
    columns = list(dict.fromkeys(key for row in found for key in row if not isinstance(row[key], list | dict)))
    cells = [[cell(row.get(c)) for c in columns] for row in found]
    return markdown_table(cells, [c.replace("_", " ") for c in columns]) + "\n"


def cell(value: Any) -> str:
    """Three digits of a number, nothing for None."""
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
