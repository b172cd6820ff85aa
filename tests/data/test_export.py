"""Merged stores, and stores in the formats of other programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pyarrow.parquet as pq
import pytest

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.data.store import Store
from fastcrystal.data.store.export import export
from fastcrystal.data.store.merge import merge_stores
from fastcrystal.data.store.writer import StoreWriter


@pytest.fixture(scope="module")
def data() -> CrystalDataset:
    return load_dataset("prototypes").select(range(40))


def made(path: Path, data: CrystalDataset, name: str, symprec: float = 0.1) -> Store:
    with StoreWriter(path, [{"name": name}], {"symprec": symprec}) as writer:
        writer.add_many(0, data)
        writer.reject(0, "bad", f"of {name}")
    return writer.store


def test_merged_stores_share_their_files(data: CrystalDataset, tmp_path: Path) -> None:
    one = made(tmp_path / "one", data.select(range(30)), "a")
    made(tmp_path / "two", data.select(range(30, 40)), "b")
    made(tmp_path / "three", data.select(range(5)), "a")
    merged = merge_stores([tmp_path / "one", tmp_path / "two", tmp_path / "three"], tmp_path / "all")
    assert merged.labels == ["a", "b"]
    assert merged.label.tolist() == [0] * 30 + [1] * 10 + [0] * 5
    assert merged.read().fingerprint() == data.select([*range(40), *range(5)]).fingerprint()
    parts = [tmp_path / "one" / "parts" / one.manifest["parts"][0]["name"], tmp_path / "all" / "parts" / "000000"]
    assert (parts[0] / "frac.npy").samefile(parts[1] / "frac.npy")
    rejects = pq.read_table(tmp_path / "all" / "rejects.parquet").to_pylist()
    assert [r["reason"] for r in rejects] == ["of a", "of b", "of a"]
    merged.verify()


def test_what_cannot_be_merged(data: CrystalDataset, tmp_path: Path) -> None:
    one = made(tmp_path / "one", data, "a")
    made(tmp_path / "two", data, "b", symprec=0.01)
    one.select([1]).save_view(tmp_path / "view")
    with pytest.raises(ValueError, match="made with other settings"):
        merge_stores([tmp_path / "one", tmp_path / "two"], tmp_path / "all")
    with pytest.raises(ValueError, match="is a view"):
        merge_stores([tmp_path / "view"], tmp_path / "all")
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_stores([], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_parquet(data: CrystalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcrystal.data.store.export.CHUNK", 7)
    without = replace(data, energy=np.where(np.arange(40) == 3, np.nan, data.energy).astype(np.float32))
    view = made(tmp_path / "s", without, "a").select([9, 3, 21])
    rows = pq.read_table(export(view, tmp_path / "x.parquet", progress=False)).to_pylist()
    for row, i in zip(rows, [9, 3, 21], strict=True):
        one = data.select([i])
        assert (row["formula"], row["natoms"], row["sg"], row["source"]) == (
            one.formula[0],
            one.num_sites[0],
            one.space_group[0],
            "a",
        )
        assert row["e_form"] is None if i == 3 else row["e_form"] == one.energy[0]
        np.testing.assert_array_equal(np.reshape(row["lattice"], (3, 3)).astype(np.float32), one.lattice[0])
        np.testing.assert_array_equal(row["numbers"], one.species)
        np.testing.assert_array_equal(np.array(row["frac"], dtype=np.float32), one.frac)
    with pytest.raises(FileExistsError, match="is there already"):
        export(view, tmp_path / "x.parquet")


def test_extxyz(data: CrystalDataset, tmp_path: Path) -> None:
    store = made(tmp_path / "s", data, "a")
    frames = ase.io.read(export(store, tmp_path / "x.extxyz", progress=False), index=":")
    assert len(frames) == 40
    offsets = data.offsets
    for i, atoms in enumerate(frames):
        assert atoms.info["id"] == store.ids([i])[0]
        assert atoms.info["spacegroup"] == data.space_group[i]
        assert atoms.info["formation_energy"] == pytest.approx(float(data.energy[i]), abs=1e-6)
        np.testing.assert_allclose(atoms.cell.array, data.lattice[i], atol=1e-5)
        np.testing.assert_array_equal(atoms.numbers, data.species[offsets[i] : offsets[i + 1]])
        apart = atoms.get_scaled_positions(wrap=False) - data.frac[offsets[i] : offsets[i + 1]]
        np.testing.assert_allclose(apart, 0, atol=1e-6)
