"""Data: a training batch on the device, the shipped data set opened from its file, and a store opened.

    pytest benchmarks/bench_data.py --benchmark-only

Batches of 256 are gathered where the data set lies, against a DataLoader that writes out each crystal's conditions and
copies them over. The file is opened against the same crystals as JSON of plain dictionaries, one per crystal, packed
into the same arrays; and, fewer of them, as pymatgen's structures, which is how databases hand them out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.plain import DenseCrystals, loader
from benchmarks.synthetic import synthetic_crystals
from benchmarks.timing import DEVICE, once, paired, wait
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.data.store import open_store
from fastcrystal.data.store.export import export
from fastcrystal.data.store.writer import StoreWriter
from fastcrystal.ops.philox import Noise
from fastcrystal.training.config import RunConfig
from fastcrystal.training.trainer import Trainer

pytestmark = pytest.mark.timeout(600)
BATCH = 256
#: crystals that are read as pymatgen's dictionaries; the time is scaled up
PYMATGEN = 200
#: made-up crystals in a store
STORED = 50_000


@pytest.mark.parametrize("workers", [0, 2])
def test_batch(benchmark: Any, workers: int, tmp_path: Path) -> None:
    config = RunConfig.from_preset("slim", trainer={"batch_size": BATCH, "device": DEVICE})
    trainer = Trainer(config, tmp_path / "run")
    task, splits = trainer.task, trainer.splits
    crystals = splits.load(splits.indices.train).batch()
    dense = DenseCrystals(crystals, trainer.scaling, splits.length)
    batches = iter(loader(dense, BATCH, trainer.config.trainer.seed, workers))
    noise = Noise(trainer.config.trainer.seed, 1)
    ours, theirs = task.batch(noise), next(batches)
    torch.testing.assert_close(theirs.x_1, ours.x_1.cpu())
    torch.testing.assert_close(theirs.species, ours.crystals.species.cpu())

    def draw() -> None:
        task.batch(noise)
        wait()

    found = paired(draw, lambda: next(batches).to(DEVICE), rounds=50, warm_up=5, limit=20)
    benchmark.pedantic(draw, rounds=50, warmup_rounds=3)
    benchmark.extra_info.update(
        title=f"batch of {BATCH}, against a DataLoader of {workers} workers",
        times_dataloader=found.ratio,
        dataloader_ms=1e3 * found.theirs,
        device=DEVICE,
    )


def as_dictionaries(data: CrystalDataset) -> list[dict[str, Any]]:
    """Answer of a database, without its labels."""
    offsets = data.offsets
    return [
        {
            "formula": str(data.formula[i]),
            "e_form": float(data.energy[i]),
            "sg": int(data.space_group[i]),
            "lattice": data.lattice[i].tolist(),
            "numbers": data.species[offsets[i] : offsets[i + 1]].tolist(),
            "frac": data.frac[offsets[i] : offsets[i + 1]].tolist(),
        }
        for i in range(len(data))
    ]


def from_json(path: Path) -> CrystalDataset:
    """Read `as_dictionaries` and pack them."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return CrystalDataset(
        np.concatenate([c["numbers"] for c in found]),
        np.concatenate([np.array(c["frac"], dtype=np.float32) for c in found]),
        np.array([c["lattice"] for c in found], dtype=np.float32),
        np.array([len(c["numbers"]) for c in found]),
        np.array([c["sg"] for c in found]),
        np.array([c["e_form"] for c in found], dtype=np.float32),
        np.array([c["formula"] for c in found]),
    )


def test_open(benchmark: Any, tmp_path: Path) -> None:
    from pymatgen.core import Structure

    data = load_dataset("prototypes")
    path, structures = tmp_path / "crystals.json", tmp_path / "structures.json"
    path.write_text(json.dumps(as_dictionaries(data)), encoding="utf-8")
    assert from_json(path).fingerprint() == data.fingerprint()
    first = data.batch(range(PYMATGEN)).to_structures()
    structures.write_text(json.dumps([s.as_dict() for s in first]), encoding="utf-8")

    def pymatgen() -> list[Any]:
        return [Structure.from_dict(s) for s in json.loads(structures.read_text(encoding="utf-8"))]

    found = paired(lambda: load_dataset("prototypes"), lambda: from_json(path), rounds=10, limit=20)
    slowest = min(once(pymatgen) for _ in range(3)) * len(data) / PYMATGEN
    benchmark.pedantic(load_dataset, ("prototypes",), rounds=10)
    benchmark.extra_info.update(
        title=f"opening {len(data)} crystals",
        times_json=found.ratio,
        times_pymatgen=slowest / found.ours,
        json_ms=1e3 * found.theirs,
        pymatgen_ms=1e3 * slowest,
        crystals=len(data),
    )


def test_store(benchmark: Any, tmp_path: Path) -> None:
    """A store opened and a batch drawn, against the same crystals as .npz and as Parquet, which are read whole."""
    import pyarrow.parquet as pq

    (data,) = synthetic_crystals(STORED, chunk=STORED)
    with StoreWriter(tmp_path / "store", [{"name": "made up"}], {}) as writer:
        writer.add_many(0, data)
    npz = data.save(tmp_path / "crystals.npz")
    parquet = export(writer.store, tmp_path / "crystals.parquet", progress=False)
    rows = np.random.default_rng(0).integers(STORED, size=BATCH)

    def ours() -> Any:
        return open_store(tmp_path / "store").batch(rows)

    def theirs() -> Any:
        return load_dataset(npz).batch(rows)

    assert torch.equal(ours().frac, theirs().frac)
    found = paired(ours, theirs, rounds=10, limit=20)
    columns = ["numbers", "frac", "lattice", "e_form", "sg"]
    table = min(once(lambda: pq.read_table(parquet, columns=columns).take(rows).to_pylist()) for _ in range(3))
    benchmark.pedantic(ours, rounds=10)
    benchmark.extra_info.update(
        title=f"a store of {STORED} crystals: open, draw a batch of {BATCH}",
        times_npz=found.ratio,
        times_parquet=table / found.ours,
        npz_ms=1e3 * found.theirs,
        parquet_ms=1e3 * table,
        crystals=STORED,
    )
