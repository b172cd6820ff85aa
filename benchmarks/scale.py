"""Data at the size of a real database: cost of every stage against the number of crystals, made-up entries.

    PYTHONPATH=. python benchmarks/scale.py --out DIR [--sizes 1e4 1e5 2.1e6] [--imported 1e3 1e4]

DIR/scale.json holds machine, date and versions and one row for each stage and size: seconds, and the peak of the
process's own memory (anonymous, without the pages of mapped files, which the system takes back when it needs them) and
of all that is resident. Every stage runs in a process of its own; imports are not timed. DIR/scale.png draws them.

    build     packed entries -> store (checksums, fsync)         open      open, and draw a first batch of 256
    batches   100 random batches of 256                          curate    the paper's curation, as a view
    split     train, validation, test by formula                 import    AFLOW csv -> canonical store, all cores
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check import machine, write
from benchmarks.synthetic import synthetic_crystals
from fastcrystal.data.curation.curate import curate
from fastcrystal.data.splits import split_by_formula
from fastcrystal.data.store import open_store
from fastcrystal.data.store.importing import import_store
from fastcrystal.data.store.writer import StoreWriter
from fastcrystal.features.elements import SYMBOLS
from fastcrystal.structure.lattice import lattice_parameters

DRAWN = 256
FIELDS = ("auid", "pretty_formula", "geometry", "positions_fractional", "spacegroup_relax", "enthalpy_formation_atom")
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, draw; or, as a process of its own, run one stage and print its row."""
    args = _arguments(argv)
    if args.stage:
        print(json.dumps(STAGES[args.stage](args.folder, args.size)))
        return 0
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        plan = [(stage, n) for n in args.sizes for stage in STAGES if stage not in ("entries", "import")]
        plan += [(stage, n) for n in args.imported for stage in ("entries", "import")]
        for stage, size in plan:
            row = {"stage": stage, "crystals": size, **_apart(stage, size, Path(scratch) / str(size))}
            print(json.dumps(row), flush=True)
            rows.append(row)
            result = {
                "machine": machine("cpu"),
                "datetime": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "rows": rows,
            }
            write(args.out / "scale.json", result)
    draw(rows, args.out / "scale.png")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole: Callable[[str], int] = lambda text: int(float(text))  # noqa: E731 (1e6 is easier to read than 1000000)
    p.add_argument("--out", type=Path, default=Path("scale"))
    p.add_argument("--sizes", type=whole, nargs="+", default=[10_000, 100_000, 1_000_000, 2_100_000])
    p.add_argument("--imported", type=whole, nargs="*", default=[1_000, 4_000])
    p.add_argument("--scratch", type=Path, help="where stores are made and deleted again (default: the system's)")
    p.add_argument("--stage", choices=tuple(STAGES), help=argparse.SUPPRESS)
    p.add_argument("--size", type=int, help=argparse.SUPPRESS)
    p.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return p.parse_args(argv)


def _apart(stage: str, size: int, folder: Path) -> Row:
    command = [sys.executable, __file__, "--stage", stage, "--size", str(size), "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def _measured(run: Callable[[], Any]) -> tuple[Row, Any]:
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}, result


def build(folder: Path, size: int) -> Row:
    """Seconds of a store's build; those of making the entries are measured alone and subtracted."""
    next(synthetic_crystals(1))  # the prototypes are read and put in order once
    start = time.perf_counter()
    for _ in synthetic_crystals(size):
        pass
    making = time.perf_counter() - start

    def run() -> None:
        with StoreWriter(folder / "store", [{"name": "made up"}], {}) as writer:
            for crystals in synthetic_crystals(size):
                writer.add_many(0, crystals)

    row, _ = _measured(run)
    bytes_on_disk = sum(f.stat().st_size for f in (folder / "store").rglob("*") if f.is_file())
    row |= {"seconds": row["seconds"] - making, "bytes_per_crystal": bytes_on_disk / size}
    return row


def opening(folder: Path, size: int) -> Row:
    rows = np.random.default_rng(0).integers(size, size=DRAWN)
    return _measured(lambda: open_store(folder / "store").batch(rows))[0]


def batches(folder: Path, size: int) -> Row:
    store, rng = open_store(folder / "store"), np.random.default_rng(0)

    def run() -> None:
        for _ in range(100):
            store.batch(rng.integers(size, size=DRAWN))

    run()
    row, _ = _measured(run)
    return {**row, "crystals_per_second": 100 * DRAWN / row["seconds"]}


def curation(folder: Path, size: int) -> Row:
    row, done = _measured(lambda: curate(open_store(folder / "store")))
    done.save(folder / "curated")
    return {**row, "kept": len(done.view)}


def splitting(folder: Path, size: int) -> Row:
    row, done = _measured(lambda: split_by_formula(open_store(folder / "store")))
    return {**row, "sides": [len(done.train), len(done.val), len(done.test)]}


def entries(folder: Path, size: int) -> Row:
    """The csv of the paper's code, which `import` reads."""
    folder.mkdir(parents=True, exist_ok=True)

    def run() -> None:
        with (folder / "aflow.csv").open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file)
            out.writerow(FIELDS)
            for data in synthetic_crystals(size):
                cells, offsets = np.hstack(lattice_parameters(data.lattice)), data.offsets
                for i in range(len(data)):
                    numbers = data.species[offsets[i] : offsets[i + 1]]
                    # AFLOW's sites are grouped by species in alphabetical order
                    order = np.argsort([SYMBOLS[z] for z in numbers], kind="stable")
                    frac = data.frac[offsets[i] : offsets[i + 1]][order]
                    cell, sites = cells[i].round(6).tolist(), frac.round(6).tolist()
                    out.writerow(
                        (data.labels["id"][i], data.formula[i], cell, sites, data.space_group[i], data.energy[i])
                    )

    return _measured(run)[0]


def importing(folder: Path, size: int) -> Row:
    row, report = _measured(lambda: import_store([folder / "aflow.csv"], folder / "imported"))
    return {**row, "kept": report.n_structures, "crystals_per_second": size / row["seconds"]}


STAGES: dict[str, Callable[[Path, int], Row]] = {
    "build": build,
    "open": opening,
    "batches": batches,
    "curate": curation,
    "split": splitting,
    "entries": entries,
    "import": importing,
}


def slope(rows: Sequence[Row], stage: str) -> float:
    """Exponent of seconds against crystals between the two largest sizes of a stage: 1 is linear."""
    a, b = sorted((r for r in rows if r["stage"] == stage), key=lambda r: int(r["crystals"]))[-2:]
    return math.log(b["seconds"] / a["seconds"]) / math.log(b["crystals"] / a["crystals"])


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Seconds and memory of each stage against the number of crystals, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    for stage in dict.fromkeys(r["stage"] for r in rows if r["stage"] != "entries"):
        mine = [r for r in rows if r["stage"] == stage]
        sizes = [r["crystals"] for r in mine]
        left.plot(sizes, [r["seconds"] for r in mine], marker="o", markersize=4, label=stage)
        right.plot(sizes, [r["peak_resident_mb"] for r in mine], marker="o", markersize=4, label=stage)
    largest = max(r["crystals"] for r in rows)
    left.plot([largest / 100, largest], [0.01, 1], color="0.6", linestyle=":", label="linear")
    left.set(xscale="log", yscale="log", xlabel="crystals", ylabel="seconds")
    right.set(xscale="log", xlabel="crystals", ylabel="peak resident memory, MB", ylim=(0, None))
    left.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


if __name__ == "__main__":
    sys.exit(main())
