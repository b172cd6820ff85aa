"""Counts that are known by hand, and pictures that show something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastcrystal.cli.app import main
from fastcrystal.data.curation.summary import as_markdown, summarize
from fastcrystal.data.curation.summary_page import PANELS, SYSTEMS, table_place, write_summary
from fastcrystal.data.store import Store
from fastcrystal.features.elements import SYMBOLS
from tests.factories.made_up import make
from tests.factories.made_up_store import store_of, with_groups
from tests.factories.text import unpadded

NAN = float("nan")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """9 NaCl (2 sites), 2 MgO (4 sites) and a Cs (1 site) of two collections, groups known."""
    one = make([((11, 17), [-2.0, -1.0, *([NAN] * 7)]), ((12, 12, 8, 8), [-3.0])])
    other = make([((12, 12, 8, 8), [-3.5]), ((55,), [0.0])])
    one, other = with_groups(one, [225] * 8 + [0, 62]), with_groups(other, [62, 229])
    declared = [225] * 6 + [221, 0, 225, 62]
    return store_of(tmp_path_factory.mktemp("summary") / "known", one, other, declared=declared)


def test_counts(store: Store) -> None:
    s = summarize(store)
    assert (s.name, s.n_crystals, s.by_label) == ("known", 12, {"set0": 10, "set1": 2})
    assert s.by_sites.tolist() == [0, 1, 9, 0, 2]
    assert {g: n for g, n in enumerate(s.by_group.tolist()) if n} == {0: 1, 62: 2, 225: 8, 229: 1}
    assert {SYMBOLS[z]: int(s.by_element[z]) for z in np.flatnonzero(s.by_element)} == {
        **{"O": 2, "Na": 9},
        **{"Mg": 2, "Cl": 9, "Cs": 1},
    }
    assert sorted(s.group_sizes.tolist()) == [1, 2, 9]
    assert s.sites == (1, 4)
    assert s.polymorphs() == (1, 9)
    assert s.polymorphs(2, 8) == (1, 2)
    assert s.energies.tolist() == [-3.5, -3.0, -2.0, -1.0, 0.0]
    # one states nothing and one has no computed group; of the other ten 221 is not 225
    assert (s.n_declared, s.n_disagreeing, s.disagreement) == (10, 1, 0.1)


def test_a_view_counts_its_own(store: Store) -> None:
    s = summarize(store.where(labels=["set1"]))
    assert (s.n_crystals, s.by_label, s.elements) == (2, {"set1": 2}, ["O", "Mg", "Cs"])
    unknown = summarize(store.select(np.arange(2, 6)))
    assert len(unknown.energies) == 0
    assert "all unknown" in as_markdown(unknown)


def test_page(store: Store) -> None:
    page = unpadded(as_markdown(summarize(store)))
    assert "| declared and computed space group differ | 1 of 10 that have both (10.00%) |" in page
    assert "| formulas of 7 or more crystals | 1 with 9 crystals |" in page
    assert "| formation energy unknown | 7 |" in page
    assert "Na 75.0%" in page


def test_pictures(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from matplotlib.image import imread

    assert main(["data", "summary", str(store.path), "--out", str(tmp_path / "page")]) == 0
    assert "| crystals | 12 |" in unpadded(capsys.readouterr().out)
    names = sorted(p.name for p in (tmp_path / "page").iterdir())
    assert names == sorted(["summary.md", "summary.png", *(f"{name}.png" for name in PANELS)])
    for name in names:
        if name.endswith(".png"):
            picture = imread(tmp_path / "page" / name)
            assert min(picture.shape[:2]) > 300
            assert picture[..., :3].std() > 0.05


def test_pictures_without_energies_and_of_one_crystal(store: Store, tmp_path: Path) -> None:
    assert len(write_summary(store.select([3]), tmp_path / "one", dpi=40)) == 2 + len(PANELS)


def test_nothing_to_draw(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"known holds no crystals"):
        write_summary(store.select([]), tmp_path / "none")


def test_places_in_the_periodic_table() -> None:
    places = {SYMBOLS[z]: table_place(z) for z in range(1, len(SYMBOLS))}
    assert len(set(places.values())) == 103
    known = {"H": (1, 1), "He": (18, 1), "Fe": (8, 4), "Bi": (15, 6), "Lu": (17, 8.3)}
    assert {symbol: places[symbol] for symbol in known} == known
    assert {places[s][1] for s in ("Ce", "Yb")} == {8.3}
    assert {places[s][1] for s in ("Th", "No")} == {9.3}


def test_crystal_systems() -> None:
    spglib_sizes = {"triclinic": 2, "monoclinic": 13, "orthorhombic": 59, "tetragonal": 68}
    spglib_sizes |= {"trigonal": 25, "hexagonal": 27, "cubic": 36}
    last = [0, *(end for end, _ in SYSTEMS.values())]
    assert dict(zip(SYSTEMS, np.diff(last).tolist(), strict=True)) == spglib_sizes


def test_outliers_do_not_squeeze_the_energies(tmp_path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from fastcrystal.data.curation.summary_page import draw_energies

    data = make([((11, 17), np.linspace(-1, 0, 3000).tolist())])
    summary = summarize(store_of(tmp_path / "s", data))
    energy = np.append(summary.energies, np.float32(1e4))
    figure, axis = plt.subplots()
    draw_energies(axis, replace(summary, energy={"set0": energy}, n_crystals=3001))
    assert axis.get_xlim()[1] < 0.1
    assert "1 beyond, in the outermost bins" in axis.get_xlabel()
    plt.close(figure)
