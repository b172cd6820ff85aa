"""The store: what is written comes back, views copy nothing, a kill costs nothing, damage has a name."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.data.splits import split_by_formula
from fastcrystal.data.store import format as store_format
from fastcrystal.data.store import open_store
from fastcrystal.data.store import writer as store_writer
from fastcrystal.data.store.writer import StoreWriter
from fastcrystal.symmetry.canonical import canonicalize

FIELDS = ("formula", "num_sites", "energy", "space_group", "lattice", "species", "frac")
SETTINGS = {"symprec": 0.1}


@pytest.fixture(scope="module")
def data() -> CrystalDataset:
    return load_dataset("prototypes").select(range(300))


def write(path: Path, data: CrystalDataset, name: str = "a", step: int = 70, **how: bool) -> None:
    """A store of several commits."""
    with StoreWriter(path, [{"name": name, "licence": "none"}], SETTINGS, **how) as writer:
        for first in range(writer.consumed(0), len(data), step):
            writer.add_many(0, data.select(range(first, min(first + step, len(data)))))
            writer.commit()


def same(one: CrystalDataset, other: CrystalDataset) -> bool:
    return all(np.array_equal(getattr(one, k), getattr(other, k), equal_nan=k == "energy") for k in FIELDS)


def test_what_is_written_comes_back(data: CrystalDataset, tmp_path: Path) -> None:
    write(tmp_path / "s", data)
    store = open_store(tmp_path / "s")
    assert len(store) == len(data)
    assert same(store.read(), data)
    assert same(store.read([7, 3, 7]), data.select([7, 3, 7]))
    assert store.ids([5, 2]) == data.labels["id"][[5, 2]].tolist()
    assert store.labels == ["a"]
    for name in ("num_sites", "space_group", "energy"):
        np.testing.assert_array_equal(getattr(store, name), getattr(data, name))


def test_batches_are_the_data_sets(data: CrystalDataset, tmp_path: Path) -> None:
    write(tmp_path / "s", data)
    rows = np.random.default_rng(0).integers(len(data), size=64)
    have, want = open_store(tmp_path / "s").batch(rows, 20), data.batch(rows, 20)
    for name in ("species", "frac", "lattice", "num_sites", "space_group", "energy"):
        assert (getattr(have, name) == getattr(want, name)).all()


def test_parts_are_cut_anew(data: CrystalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the commits nor an append show in the finished store; full parts are left where they are."""
    monkeypatch.setattr(store_writer, "PART", 100)
    write(tmp_path / "one", data, step=300)
    write(tmp_path / "many", data, step=17)
    one, many = open_store(tmp_path / "one"), open_store(tmp_path / "many")
    assert one.fingerprint() == many.fingerprint()
    assert [p["n_crystals"] for p in one.manifest["parts"]] == [100, 100, 100]
    before = [p["name"] for p in many.manifest["parts"]]
    write(tmp_path / "many", data.select(range(50)), name="b", append=True)
    more = open_store(tmp_path / "many")
    assert [p["name"] for p in more.manifest["parts"]][:3] == before
    assert same(more.read(), load_both(data, data.select(range(50))))
    assert more.labels == ["a", "b"]
    assert more.label.tolist() == [0] * 300 + [1] * 50
    assert sorted(p.name for p in (tmp_path / "many" / "parts").iterdir()) == sorted(
        p["name"] for p in more.manifest["parts"]
    )


def load_both(one: CrystalDataset, other: CrystalDataset) -> CrystalDataset:
    joined: dict[str, Any] = {k: np.concatenate([getattr(one, k), getattr(other, k)]) for k in FIELDS}
    return CrystalDataset(**joined)


def test_one_by_one(data: CrystalDataset, tmp_path: Path) -> None:
    forms = [canonicalize(*data[i]) for i in range(5)]
    with StoreWriter(tmp_path / "s", [{"name": "x"}, {"name": "y"}], SETTINGS) as writer:
        for i, form in enumerate(forms):
            writer.add(0, form, id=f"é{i}", energy=-0.5 * i, declared_group=i, label="z" if i == 4 else "")
        writer.reject(1, "bad", "no volume")
        writer.note(1, column="cif")
    store = writer.store
    assert store.ids() == ["é0", "é1", "é2", "é3", "é4"]
    np.testing.assert_allclose(store.energy, [0, -0.5, -1, -1.5, -2])
    assert store.declared_group.tolist() == [0, 1, 2, 3, 4]
    assert store.space_group.tolist() == [f.space_group for f in forms]
    assert [store.labels[i] for i in store.label] == ["x", "x", "x", "x", "z"]
    assert pq.read_table(tmp_path / "s" / "rejects.parquet").to_pylist() == [
        {"source": "y", "id": "bad", "reason": "no volume"}
    ]
    sources = store.manifest["sources"]
    assert [(s["consumed"], s["n_crystals"], s["n_rejected"]) for s in sources] == [(5, 5, 0), (1, 0, 1)]
    assert sources[1]["notes"] == {"column": "cif"}


def test_selection(data: CrystalDataset, tmp_path: Path) -> None:
    write(tmp_path / "s", data)
    store = open_store(tmp_path / "s")
    o = data.offsets
    has = [set(data.species[o[i] : o[i + 1]].tolist()) for i in range(len(data))]
    element = int(data.species[0])
    from fastcrystal.features.elements import SYMBOLS

    want = [i for i in range(len(data)) if element in has[i] and data.num_sites[i] <= 6 and data.space_group[i] >= 100]
    view = store.where(elements=[SYMBOLS[element]], sites=(1, 6), groups=range(100, 231))
    assert len(want) not in (0, len(data))
    assert same(view.read(), data.select(want))
    low, high = np.quantile(data.energy, [0.2, 0.6])
    inside = view.where(energy=(float(low), float(high)))
    assert same(inside.read(), data.select([i for i in want if low <= data.energy[i] <= high]))
    assert set(store.where(formulas=[str(data.formula[0])]).read().formula) == {data.formula[0]}
    assert len(store.where(only_elements=[SYMBOLS[element]])) == sum(h == {element} for h in has)
    assert len(store.where(labels=["a"])) == len(data)
    with pytest.raises(ValueError, match=r"has no label 'q'; has a"):
        store.where(labels=["q"])
    with pytest.raises(ValueError, match=r"rows must be in 0\.\.299, got 300"):
        store.read([300])
    with pytest.raises(ValueError, match=r"must have shape \(300,\), got \(3,\)"):
        store.select(np.array([True, False, True]))


def test_a_view_on_disk_copies_nothing(data: CrystalDataset, tmp_path: Path) -> None:
    write(tmp_path / "s", data)
    view = open_store(tmp_path / "s").select([5, 200, 7])
    view.save_view(tmp_path / "v")
    assert sum(f.stat().st_size for f in (tmp_path / "v").iterdir()) < 1000
    again = open_store(tmp_path / "v")
    assert same(again.read(), data.select([5, 200, 7]))
    assert again.fingerprint() == view.fingerprint() != open_store(tmp_path / "s").fingerprint()
    assert same(again.select([2]).read(), data.select([7]))
    write(tmp_path / "s", data.select([0]), name="b", append=True)
    with pytest.raises(ValueError, match="has changed since: make the view again"):
        open_store(tmp_path / "v")
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(ValueError, match="which is gone"):
        open_store(tmp_path / "v")


KILLED = """
import sys
from pathlib import Path
from typing import Any
from fastcrystal.data.load import load_dataset
from fastcrystal.data.store import writer as store_writer
store_writer.COMMIT_CRYSTALS = 7
data = load_dataset("prototypes").select(range(300))
with store_writer.StoreWriter(sys.argv[1], [{"name": "a", "licence": "none"}], {"symprec": 0.1}) as writer:
    print("at", writer.consumed(0), flush=True)
    for i in range(writer.consumed(0), len(data)):
        if i % 10 == 3:
            writer.reject(0, str(i), "third of ten")
        else:
            writer.add_many(0, data.select([i]))
"""


def test_a_killed_build_goes_on_where_it_was(data: CrystalDataset, tmp_path: Path) -> None:
    """SIGKILL at several instants; the finished store is that of a build that was left alone."""
    random = np.random.default_rng(3)
    starts = []
    for attempt in range(30):
        run = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "s")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert run.stdout is not None
        starts.append(int(run.stdout.readline().split()[1]))
        if attempt < 3:
            time.sleep(float(random.uniform(0.01, 0.15)))
            os.kill(run.pid, signal.SIGKILL)
        _, said = run.communicate(timeout=60)
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, said
    assert len(starts) > 1
    assert starts == sorted(starts)
    assert starts[-1] > 0
    store = open_store(tmp_path / "s")
    kept = [i for i in range(300) if i % 10 != 3]
    assert same(store.read(), data.select(kept))
    rejects = pq.read_table(tmp_path / "s" / "rejects.parquet").to_pylist()
    assert [r["id"] for r in rejects] == [str(i) for i in range(300) if i % 10 == 3]
    assert store.manifest["n_rejected"] == 30


def _interrupted(path: Path, sources: list[dict[str, str]], data: CrystalDataset) -> None:
    with StoreWriter(path, sources, SETTINGS) as writer:
        writer.add_many(0, data)
        raise ZeroDivisionError


def test_an_unfinished_store_is_not_opened(data: CrystalDataset, tmp_path: Path) -> None:
    sources = [{"name": "a"}]
    with pytest.raises(ZeroDivisionError):
        _interrupted(tmp_path / "s", sources, data)
    with pytest.raises(ValueError, match="unfinished: run the command that was making it again"):
        open_store(tmp_path / "s")
    with pytest.raises(ValueError, match=r"other settings \(symprec was 0\.1, now 0\.2\)"):
        StoreWriter(tmp_path / "s", sources, {"symprec": 0.2})
    with pytest.raises(ValueError, match="begun from other sources"):
        StoreWriter(tmp_path / "s", [{"name": "b"}], SETTINGS)
    with StoreWriter(tmp_path / "s", sources, SETTINGS) as writer:
        assert writer.consumed(0) == 300  # what was added before the interruption is kept
    assert same(writer.store.read(), data)


def test_what_is_there_is_not_overwritten(data: CrystalDataset, tmp_path: Path) -> None:
    write(tmp_path / "s", data)
    with pytest.raises(FileExistsError, match="finished store: give another folder, or add to it with --append"):
        StoreWriter(tmp_path / "s", [{"name": "a"}], SETTINGS)
    open_store(tmp_path / "s").select([1]).save_view(tmp_path / "v")
    with pytest.raises(FileExistsError, match="view of another store"):
        StoreWriter(tmp_path / "v", [{"name": "a"}], SETTINGS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"no store, and not empty \(it has thesis.tex\)"):
        StoreWriter(tmp_path / "mine", [{"name": "a"}], SETTINGS)
    with (
        StoreWriter(tmp_path / "t", [{"name": "a"}], SETTINGS),
        pytest.raises(BlockingIOError, match="another process"),
    ):
        StoreWriter(tmp_path / "t", [{"name": "a"}], SETTINGS)


def test_rejects_of_an_append_join_the_old_ones(data: CrystalDataset, tmp_path: Path) -> None:
    for name, append in (("a", False), ("b", True)):
        with StoreWriter(tmp_path / "s", [{"name": name}], SETTINGS, append=append) as writer:
            writer.add_many(0, data.select([0, 1]))
            writer.reject(0, "x", "bad")
    rejects = pq.read_table(tmp_path / "s" / "rejects.parquet").to_pylist()
    assert [(r["source"], r["id"]) for r in rejects] == [("a", "x"), ("b", "x")]
    assert open_store(tmp_path / "s").manifest["n_rejected"] == 2


def test_an_empty_store_opens(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", [{"name": "a"}], SETTINGS) as writer:
        writer.reject(0, "x", "bad")
    store = open_store(tmp_path / "s")
    assert len(store) == 0
    assert len(store.read()) == 0
    assert len(store.where(elements=["O"], sites=(1, 3))) == 0


def test_gather_over_parts_is_gather_from_one(data: CrystalDataset, tmp_path: Path) -> None:
    write(tmp_path / "s", data)
    columns = open_store(tmp_path / "s").columns()
    ends = (0, 10, 11, 200, 300)
    whole = store_format.Part("all", columns)
    parts = [
        store_format.Part(str(a), store_format.gather([whole], np.arange(a, b))) for a, b in itertools.pairwise(ends)
    ]
    rows = np.random.default_rng(1).integers(300, size=99)
    for key, value in store_format.gather(parts, rows).items():
        np.testing.assert_array_equal(value, store_format.gather([whole], rows)[key])


def test_a_store_is_a_data_set(data: CrystalDataset, tmp_path: Path) -> None:
    """Loaded by path, one collection of it, and split like the set that it holds."""
    write(tmp_path / "s.store", data)
    write(tmp_path / "s.store", data.select([1, 2]), name="b", append=True)
    loaded = load_dataset(tmp_path / "s.store", "a")
    assert same(loaded, data)
    assert loaded.name == "s"
    assert set(loaded.labels["source"]) == {"a"}
    in_memory = split_by_formula(data, seed=3)
    on_disk = split_by_formula(open_store(tmp_path / "s.store").where(labels=["a"]), seed=3)
    for side in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(on_disk, side), getattr(in_memory, side))


def test_many_rows_by_way_of_mapped_memory(
    data: CrystalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "s", data)
    monkeypatch.setattr(store_format, "FEW", 0)
    rows = np.random.default_rng(2).integers(300, size=50)
    assert same(open_store(tmp_path / "s").read(rows), data.select(rows))


def test_the_commands_overwrite_nothing_and_name_what_is_wrong(
    data: CrystalDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastcrystal.cli.app import main

    write(tmp_path / "s", data)
    store, there = str(tmp_path / "s"), tmp_path / "there"
    (there / "val").mkdir(parents=True)
    (tmp_path / "x.npz").write_text("mine")
    one = str(open_store(store).select([0]).save_view(tmp_path / "one"))
    for command, why in (
        (["select", store, "--out", str(there)], "there is there already: give another folder"),
        (["merge", store, "--out", str(there)], "there is there already: give another folder"),
        (["split", store, "--out", str(there)], "val is there already: give another folder"),
        (["split", one, "--out", str(tmp_path / "sides")], "too few formulas (1) to split: none is left for val"),
        (["export", store, str(tmp_path / "x.npz")], "x.npz is there already"),
        (
            ["select", store, "--set", "groups=1,231", "--out", str(tmp_path / "v")],
            "space groups must be in 1..230, got 231",
        ),
        (["select", store, "--set", "sites=9,3", "--out", str(tmp_path / "v")], "sites must be a lowest and a highest"),
        (["summary", store, "--out", str(tmp_path / "x.npz")], "x.npz is a file: give a folder"),
    ):
        assert main(["data", *command]) == 2
        said = capsys.readouterr().err
        assert why in said
        assert said.count("\n") == 1
    assert not (there / "train").exists()
    assert (tmp_path / "x.npz").read_text() == "mine"
    assert main(["data", "export", store, str(tmp_path / "new" / "y.npz")]) == 0
