"""CrystalDataset: what is saved comes back, and what is no data set is refused in one line."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcrystal.data import load
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.structure.crystal import Crystal
from tests.factories.crystals import crystal, pack

KEYS = ("formula", "natoms", "e_form", "sg", "lattice", "numbers", "frac")
FIELDS = ("formula", "num_sites", "energy", "space_group", "lattice", "species", "frac")


@functools.cache
def example() -> CrystalDataset:
    """1, 2, 6 and 5 sites."""
    shapes = [
        crystal("rutile", "Ti", "O"),
        crystal("rocksalt", "Na", "Cl"),
        crystal("perovskite", "Sr", "Ti", "O"),
        crystal("caesium", "Cs", "Cl"),
    ]
    data = pack(shapes, [-3.0, -2.0, np.nan, -1.5], [136, 225, 221, 0])
    labels = {"id": np.array(["r", "s", "p", "c"]), "source": np.array(["x", "y", "x", "y"])}
    return replace(data, labels=labels, name="")


def stored(path: Path) -> dict[str, Any]:
    """The file's arrays, free to be spoilt."""
    with np.load(example().save(path)) as f:
        return dict(f)


def same(a: CrystalDataset, b: CrystalDataset) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.labels.keys() == b.labels.keys()
    for name, value in a.labels.items():
        np.testing.assert_array_equal(value, b.labels[name])


def test_round_trip(tmp_path: Path) -> None:
    data = example()
    path = data.save(tmp_path / "some.npz")
    back = load_dataset(path)
    same(back, data)
    assert back.name == "some"
    assert [p.name for p in tmp_path.iterdir()] == ["some.npz"]


def test_saving_keeps_the_old_file_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = example().save(tmp_path / "some.npz")
    before = path.read_bytes()

    def fail(f: Any, **arrays: Any) -> None:
        f.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        example().save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("index", [[2, 0, 2], [3], [], [-1, -4]])
def test_select_takes_each_crystals_own_sites(index: list[int]) -> None:
    data = example()
    part = data.select(index)
    assert len(part) == len(index)
    assert part.labels["id"].tolist() == data.labels["id"][index].tolist() if index else True
    for i, j in enumerate(index):
        j %= len(data)
        own, theirs = (slice(d.offsets[k], d.offsets[k + 1]) for d, k in ((part, i), (data, j)))
        np.testing.assert_array_equal(part.species[own], data.species[theirs])
        np.testing.assert_array_equal(part.frac[own], data.frac[theirs])
        assert part.num_sites[i] == data.num_sites[j]


def test_a_mask_selects_like_positions() -> None:
    data = example()
    same(data.select(np.array([True, False, False, True])), data.select([0, 3]))


def test_batch_agrees_with_select() -> None:
    data = example()
    whole = data.batch(max_sites=12)
    assert whole.species.shape == (4, 12)
    whole.validate()
    for i in range(4):
        one = data.select([i]).batch()
        n = int(one.num_sites[0])
        assert whole.num_sites[i] == n == one.species.shape[1]
        assert (whole.species[i, :n] == one.species[0]).all()
        assert (whole.frac[i, :n] == one.frac[0]).all()
        assert (whole.lattice[i] == one.lattice[0]).all()
        assert not whole.frac[i, n:].any()
        assert not whole.species[i, n:].any()


def test_a_batch_is_a_copy() -> None:
    data = example()
    data.batch().lattice.zero_()
    assert data.lattice.any()


def test_one_crystal_after_another() -> None:
    data = example()
    crystals = [Crystal.from_structure(s) for s in data.batch().to_structures()]
    for i, (mine, known) in enumerate(zip(data, crystals, strict=True)):
        assert mine.species.tolist() == known.species.tolist() == data[i - len(data)].species.tolist()
        np.testing.assert_array_equal(mine.frac, known.frac)
        np.testing.assert_array_equal(mine.lattice, known.lattice)
        assert mine.frac.dtype == mine.lattice.dtype == np.float64
    with pytest.raises(IndexError, match=r"crystal must be in 0\.\.3, got 4"):
        data[4]
    again = CrystalDataset.from_crystals(data, data.space_group, data.energy, labels=data.labels)
    same(again, replace(data, formula=again.formula))
    assert again.formula.tolist() == ["O2Ti", "ClNa", "O3SrTi", "ClCs"]
    assert again.ids == ["r", "s", "p", "c"]


def test_what_is_unknown_and_double_precision() -> None:
    data = CrystalDataset.from_crystals(example(), name="mine", dtype=np.float64)
    assert data.ids == ["0", "1", "2", "3"]
    assert data.space_group.tolist() == [0] * 4
    assert np.isnan(data.energy).all()
    batch = data.batch([2, 0])
    assert batch.frac.dtype == batch.lattice.dtype == batch.energy.dtype == torch.float64
    assert batch.num_sites.tolist() == data.num_sites[[2, 0]].tolist()
    assert len(data.batch([])) == 0
    assert data.astype(np.float32).batch().lattice.dtype == torch.float32
    assert data.max_sites == 6
    empty = CrystalDataset.from_crystals([])
    assert (len(empty), empty.max_sites, empty.frac.shape, list(empty)) == (0, 1, (0, 3), [])


def test_batch_refuses() -> None:
    with pytest.raises(ValueError, match="max_sites must be at least 6 for these crystals, got 5"):
        example().batch(max_sites=5)
    with pytest.raises(ValueError, match="empty"):
        example().select([]).batch()


def test_source_filter(tmp_path: Path) -> None:
    path = example().save(tmp_path / "some.npz")
    assert load_dataset(path, "y").labels["id"].tolist() == ["s", "c"]
    with pytest.raises(ValueError, match=r"no crystals from source 'z' \(has: x, y\)"):
        load_dataset(path, "z")
    arrays = stored(path)
    del arrays["source"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"\(has: no source labels\)"):
        load_dataset(path, "y")


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"no data set at prototipes: .*, or one of prototypes"):
        load_dataset("prototipes")


def test_shipped_name_is_looked_up_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(load.SHIPPED, "nowhere", "nowhere.npz")
    with pytest.raises(ValueError, match=r"no data set at .*fastcrystal/data/nowhere\.npz"):
        load_dataset("nowhere")


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 0.99])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = example().save(tmp_path / "some.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"some\.npz is not a readable \.npz data set: .+"):
        load_dataset(path)


@pytest.mark.parametrize("position", [0.2, 0.4, 0.6])
def test_overwritten_file(tmp_path: Path, position: float) -> None:
    path = example().save(tmp_path / "some.npz")
    content = bytearray(path.read_bytes())
    start = int(position * len(content))
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.npz"):
        load_dataset(path)


def test_not_an_archive_at_all(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    path.write_text("formula,energy\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not a whole zip archive"):
        load_dataset(path)
    np.save(tmp_path / "lone.npy", np.zeros(3))
    with pytest.raises(ValueError, match="not a whole zip archive"):
        load_dataset(tmp_path / "lone.npy")
    with pytest.raises(ValueError, match="is no store: it has no manifest"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", KEYS)
def test_missing_array(tmp_path: Path, name: str) -> None:
    path = tmp_path / "some.npz"
    arrays = stored(path)
    del arrays[name]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=rf"some\.npz lacks the arrays {name}; has "):
        load_dataset(path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    np.savez(path, **{**stored(path), "formula": np.array(["a", "b", None, "d"], dtype=object)})
    with pytest.raises(ValueError, match=r"some\.npz is not a readable .*allow_pickle"):
        load_dataset(path)


def test_no_crystals(tmp_path: Path) -> None:
    path = example().select([]).save(tmp_path / "some.npz")
    with pytest.raises(ValueError, match=r"some\.npz holds no crystals"):
        load_dataset(path)


@pytest.mark.parametrize(
    ("name", "spoil", "line"),
    [
        ("formula", lambda a: a[:-1], r"formula must have shape \(4,\), got \(3,\)"),
        ("e_form", lambda a: a[:, None], r"e_form must have shape \(4,\), got \(4, 1\)"),
        ("lattice", lambda a: a.reshape(4, 9), r"lattice must have shape \(4, 3, 3\), got \(4, 9\)"),
        ("numbers", lambda a: a[:-1], r"numbers must have shape \(15,\), got \(14,\)"),
        ("frac", lambda a: a[:, :2], r"frac must have shape \(15, 3\), got \(15, 2\)"),
        ("source", lambda a: a[:2], r"source must have shape \(4,\), got \(2,\)"),
        ("natoms", lambda a: a[:, None], r"natoms has the wrong type or shape"),
        ("natoms", lambda a: a.astype(str), r"natoms has the wrong type or shape"),
        ("formula", lambda a: np.arange(4), r"formula has the wrong type or shape"),
        ("natoms", lambda a: a - [6, 0, 0, -6], r"natoms must be in 1\.\., got 0 at index 0"),
        ("sg", lambda a: a + 30, r"sg must be in 0\.\.230, got 255 at index 1"),
        ("numbers", lambda a: a * 0, r"numbers must be in 1\.\.103, got 0 at index 0"),
        ("numbers", lambda a: a + 80, r"numbers must be in 1\.\.103, got 11\d at index \d+"),
        ("lattice", lambda a: a * [[[1]], [[1]], [[np.nan]], [[1]]], "lattice is not finite at index 2"),
        ("frac", lambda a: a / 0, "frac is not finite at index 0"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bad_values(tmp_path: Path, name: str, spoil: Any, line: str) -> None:
    path = tmp_path / "some.npz"
    arrays = stored(path)
    arrays[name] = spoil(arrays[name].copy())
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=line) as error:
        load_dataset(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
