"""Choice of the pairs to compare, and pymatgen's verdicts on crystals whose likeness is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastcrystal.cli.app import main
from fastcrystal.data.curation.near_duplicates import NearDuplicates, PairSettings, choose_pairs, find_near_duplicates
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.store import Store, open_store
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.match import MatchResult
from tests.factories.made_up import make
from tests.factories.made_up_store import joined, store_of

NAN = float("nan")


def cell(lattice: object, frac: object, numbers: tuple[int, ...] = (11, 17), energy: float = -2.0) -> CrystalDataset:
    """One crystal."""
    crystal = Crystal(np.array(numbers), np.asarray(frac).reshape(-1, 3), np.asarray(lattice))
    return CrystalDataset.from_crystals([crystal], [225], [energy])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """NaCl thrice nearly the same, once squeezed, once as CsCl; and two KCl, one with a doubled cell."""
    half = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) * 5.64
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
    salt = cell(half, sites)
    doubled = [[0, 0, 0], [0.5, 0, 0], [0.25, 0.5, 0.5], [0.75, 0.5, 0.5]]
    crystals = [
        salt,
        cell(half * 1.01, (sites + 0.1) % 1, energy=-1.9),
        cell(half, sites[::-1] + 0.01, (17, 11), energy=NAN),
        cell(half * 0.85, sites),
        # the volume of rocksalt, so that only the matcher tells them apart
        cell(np.eye(3) * np.cbrt(np.linalg.det(half)), sites, energy=-1.0),
        cell(half * 1.1, sites, (19, 17)),
        cell(half * 1.1 * [[2], [1], [1]], doubled, (19, 19, 17, 17)),
    ]
    return store_of(tmp_path_factory.mktemp("near") / "near", joined(crystals))


@pytest.fixture(scope="module")
def report(store: Store) -> NearDuplicates:
    return find_near_duplicates(store, jobs=1, progress=False)


def test_verdicts(report: NearDuplicates) -> None:
    pairs = [*zip(report.pairs.first.tolist(), report.pairs.second.tolist(), strict=True)]
    assert pairs == [(0, 1), (0, 2), (0, 4), (1, 2), (1, 4), (2, 4), (5, 6)]
    assert report.pairs.n_volume == 4
    assert report.result.fit.tolist() == [True, True, False, True, False, False, True]
    assert (report.crystals, report.superfluous, report.share) == (5, 3, 5 / 7)
    text = str(report)
    assert "5 of 7 crystals in 2 groups (71.4%) match another one of their formula; 3 are superfluous" in text
    assert "4 of 7 compared match; not compared: 4 with other volumes" in text


def test_the_table(report: NearDuplicates, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(report.save(tmp_path / "pairs.parquet")).to_pylist()
    assert [r["formula"] for r in rows] == ["ClNa"] * 6 + ["ClK"]
    assert [r["fit"] for r in rows] == report.result.fit.tolist()
    assert rows[0]["first_id"] == "0"
    assert (rows[-1]["first_sites"], rows[-1]["second_sites"]) == (2, 4)
    assert rows[0]["volume_ratio"] == pytest.approx(1.01**3, rel=1e-5)
    assert rows[-1]["volume_ratio"] == pytest.approx(1, rel=1e-5)
    assert rows[2]["rms"] is None or not rows[2]["fit"]
    assert not list(tmp_path.glob("*.partial"))


def test_filters(store: Store) -> None:
    assert len(choose_pairs(store, PairSettings(volume=None)).first) == 11
    same = choose_pairs(store, PairSettings(same_sites=True))
    assert (len(same.first), same.n_sites, same.n_volume) == (6, 1, 4)
    # an unknown energy (crystal 2) is no reason to leave a pair out
    near = choose_pairs(store, PairSettings(energy=0.2))
    assert [*zip(near.first.tolist(), near.second.tolist(), strict=True)] == [(0, 1), (0, 2), (1, 2), (2, 4), (5, 6)]
    assert near.n_energy == 2


def test_samples(tmp_path: Path) -> None:
    kinds = [((z, 17), range(4)) for z in range(20, 40)]
    data = make([*kinds, ((11, 17), range(30)), ((3, 9), [0.0])])
    store = store_of(tmp_path / "s", replace(data, lattice=np.tile(np.eye(3, dtype=np.float32) * 4, (len(data), 1, 1))))
    everything = choose_pairs(store, PairSettings(per_group=100))
    assert (everything.n_groups, len(everything.rows), len(everything.first)) == (21, 110, 20 * 6 + 30 * 29 // 2)
    cut = choose_pairs(store, PairSettings(per_group=5))
    assert (len(cut.rows), cut.n_in_groups, len(cut.first)) == (85, 110, 20 * 6 + 10)
    some, again, other = (choose_pairs(store, PairSettings(sample=3, seed=seed)) for seed in (1, 1, 2))
    assert some.n_groups == 3
    np.testing.assert_array_equal(some.first, again.first)
    assert some.rows.tolist() != other.rows.tolist()
    same_formula = store.formula_key[some.first] == store.formula_key[some.second]
    assert same_formula.all()
    assert (some.first < some.second).all()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"sample": 0}, "sample must be at least 1, got 0"),
        ({"per_group": 1}, "per_group must be at least 2, got 1"),
        ({"volume": -0.1}, r"volume must be at least 0, got -0\.1"),
    ],
)
def test_bad_options(store: Store, option: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_pairs(store, PairSettings(**option))  # type: ignore[arg-type]


def test_chains_count_once(store: Store) -> None:
    """0-1 and 1-2 match, 0-2 does not: one of the three is enough."""
    pairs = choose_pairs(store, PairSettings(volume=None))
    fit = np.isin(pairs.first * 10 + pairs.second, [1, 12])
    n = len(fit)
    result = MatchResult(fit, np.full(n, np.nan), ["ok"] * n, np.zeros(n), np.full(n, 2))
    assert NearDuplicates(store, pairs, result).superfluous == 2


def test_no_pair_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    store = store_of(tmp_path / "s", make([((11, 17), [0.0]), ((3, 9), [0.0])]))
    out = tmp_path / "pairs.parquet"
    assert main(["data", "near-duplicates", str(store.path), "--out", str(out), "--set", "jobs=1"]) == 0
    assert "none, no formula has two crystals" in capsys.readouterr().out
    assert pq.read_table(out).num_rows == 0
    assert len(open_store(store.path)) == 2
