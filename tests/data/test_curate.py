"""Every step drops what it should and says so; what is left satisfies all criteria, and stays when curated again."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcrystal.cli.app import main
from fastcrystal.data.curation.curate import Curated, Curation, Step, curate
from fastcrystal.data.curation.duplicates import repeated
from fastcrystal.data.store import Store, open_store
from tests.factories.made_up import make, scrambled
from tests.factories.made_up_store import joined, store_of, with_groups

NACL, MGO, LIF, CSBR = ((a, a, b, b) for a, b in ((11, 17), (12, 8), (3, 9), (55, 35)))
#: everything off
OFF = Curation(None, False, None, None, None, None)
NAN = float("nan")


def known_store(path: Path) -> Store:
    """10 NaCl, 8 MgO, 3 LiF and 80 CsBr of 4 sites, 4 NaCl of 2 sites, and the first NaCl again in another order."""
    energies = (np.arange(10), np.arange(8), np.arange(3), np.arange(80), np.arange(4))
    kinds = (NACL, MGO, LIF, CSBR, (11, 17))
    data = make([(kind, energy.tolist()) for kind, energy in zip(kinds, energies, strict=True)])
    again = scrambled(data.select([0]), 0, (3, 1, 0, 2))
    both = joined([data, again])
    return store_of(path, with_groups(both, [225] * (len(both) - 1) + [1]))


def formulas(store: Store) -> dict[str, int]:
    names, inverse = store.formulas
    return dict(zip(names.tolist(), np.bincount(inverse).tolist(), strict=True))


def test_steps_of_a_store_known_by_hand(tmp_path: Path) -> None:
    store = known_store(tmp_path / "s")
    curated = curate(store.select(np.arange(len(store) - 1)), Curation(min_share=None))
    assert curated.steps == (
        Step("sites 4..60", 105, 101),
        Step("duplicates", 101, 101),
        Step("polymorphs 7..71", 101, 18, formulas=2),
    )
    assert formulas(curated.view) == {"ClNa": 10, "MgO": 8}
    assert "2 formulas" in str(curated)


def test_trimmed_groups_keep_their_lowest(tmp_path: Path) -> None:
    curated = curate(known_store(tmp_path / "s"), replace(OFF, polymorphs=(7, 71), trim=True))
    assert formulas(curated.view) == {"ClNa": 15, "MgO": 8, "BrCs": 71}
    caesium = curated.view.where(formulas=["CsBr"])
    assert caesium.energy.tolist() == list(range(71))


def test_energies_and_windows(tmp_path: Path) -> None:
    data = make([(NACL, [-2.0, -1.5, -1.0, NAN]), (MGO, [0.0, 0.25, NAN])])
    store = store_of(tmp_path / "s", data)
    kept = curate(store, replace(OFF, energy=(-1.5, 0.2))).view
    assert kept.energy.tolist() == [-1.5, -1.0, 0.0]
    near = curate(store, replace(OFF, window=0.5)).view
    assert near.energy.tolist() == [-2.0, -1.5, 0.0, 0.25]
    assert len(curate(store, OFF).view) == 7
    assert curate(store, OFF).steps == ()


def test_what_is_rare_goes_until_nothing_is(tmp_path: Path) -> None:
    """Of 20 crystals: dropping Br (one) makes Cs rare (one of 19), and dropping Cs makes group 2 rare."""
    data = make([(NACL, range(9)), (MGO, range(9)), ((55, 35), [0]), ((55, 11), [0])])
    groups = [225] * 16 + [2, 2, 225, 2]
    store = store_of(tmp_path / "s", with_groups(data, groups))
    (step,) = curate(store, replace(OFF, min_share=0.1)).steps
    assert step == Step("rare (< 10 %)", 20, 18, elements=("Br", "Cs"))
    (step,) = curate(store, replace(OFF, min_share=0.112)).steps
    assert step == Step("rare (< 11.2 %)", 20, 16, elements=("Br", "Cs"), groups=(2,))


def test_rare_and_polymorphs_take_turns(tmp_path: Path) -> None:
    """Li is common among all crystals, and rare once the many formulas of one crystal are gone."""
    singles = [((3, 9, *([z] * n)), [0.0]) for z in (11, 12) for n in range(1, 11)]
    data = make([(NACL, range(60)), (MGO, range(60)), ((3, 12, 8, 8), range(7)), *singles])
    store = store_of(tmp_path / "s", with_groups(data, [225] * len(data)))
    curated = curate(store, Curation(sites=None, min_share=0.06))
    assert [s.name for s in curated.steps] == [
        "duplicates",
        "rare (< 6 %)",
        "polymorphs 7..71",
        "rare (< 6 %), turn 2",
    ]
    assert [s.after for s in curated.steps] == [147, 147, 127, 120]
    assert curated.steps[-1].elements == ("Li",)


def test_duplicates_whatever_their_order_of_sites(tmp_path: Path) -> None:
    data = make([(NACL, [1.0, 1.0, NAN])])
    first = data.select([0])
    wrapped = first.frac.copy()
    wrapped[0] = 0.0
    at_zero = replace(first, frac=wrapped)
    below_one = replace(first, frac=np.where(wrapped == 0, np.float32(1) - np.float32(1e-6), wrapped))
    others = [
        replace(first, energy=first.energy + np.float32(0.01)),
        replace(first, lattice=first.lattice * np.float32(1.01)),
        replace(first, species=first.species[::-1]),
        replace(first, space_group=first.space_group + 1),
        replace(first, frac=(first.frac + np.float32(0.01)) % 1),
    ]
    unknown = data.select([2])
    parts = [data, scrambled(first, 0, (1, 0, 3, 2)), at_zero, below_one, unknown, first, *others]
    store = store_of(tmp_path / "s", joined(parts))
    assert np.flatnonzero(repeated(store)).tolist() == [3, 5, 6, 7]


def test_nothing_left_names_the_step(tmp_path: Path) -> None:
    store = known_store(tmp_path / "s")
    with pytest.raises(ValueError, match=r"curation leaves nothing: step 'sites 30\.\.60' drops the last 106"):
        curate(store, Curation(sites=(30, 60)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": (60, 4)}, "sites must be a lowest and a highest value, got 60 and 4"),
        ({"window": -1.0}, r"window must be at least 0 eV/atom, got -1\.0"),
        ({"min_share": 1.5}, r"min_share must be a share in 0\.\.1, got 1\.5"),
        ({"energy": (NAN, 0.0)}, "energy must be a lowest and a highest value"),
    ],
)
def test_options_out_of_range(options: dict[str, tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curation(**options)  # type: ignore[arg-type]


def test_saved_with_its_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = known_store(tmp_path / "s")
    asked = [
        "data",
        "curate",
        str(store.path),
        "--out",
        str(tmp_path / "v"),
        "--set",
        "energy=-1,5",
        "--set",
        "min_share=0",
    ]
    assert main(asked) == 0
    printed = capsys.readouterr().out
    assert "7 crystals in the view" in printed
    view = open_store(tmp_path / "v")
    # of MgO six are below 5 eV/atom, too few; the seventh NaCl is the first in another space group
    assert formulas(view) == {"ClNa": 7}
    history = json.loads((tmp_path / "v" / "curation.json").read_text(encoding="utf-8"))
    assert history["n_crystals"] == len(view)
    assert history["steps"][0] == {
        **{"name": "sites 4..60", "before": 106, "after": 102, "gone": 4},
        **{"elements": [], "groups": [], "formulas": 0},
    }
    assert history["options"]["energy"] == [-1.0, 5.0]
    assert main(asked) == 2
    assert "is there already" in capsys.readouterr().err


def assert_satisfied(curated: Curated) -> None:
    view, options = curated.view, curated.options
    if options.sites is not None:
        assert view.num_sites.min() >= options.sites[0]
        assert view.num_sites.max() <= options.sites[1]
    if options.duplicates:
        assert not repeated(view).any()
    sizes = np.array(list(formulas(view).values()))
    if options.polymorphs is not None:
        assert sizes.min() >= options.polymorphs[0]
        assert sizes.max() <= options.polymorphs[1]
    if options.min_share is not None:
        inverse, elements = view.formulas[1], view.formula_elements()
        for z in frozenset().union(*elements):
            holds = np.array([z in e for e in elements])[inverse]
            assert holds.mean() >= options.min_share
        assert np.bincount(view.space_group)[np.unique(view.space_group)].min() >= options.min_share * len(view)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([None, 0.05, 0.2]),
    st.sampled_from([None, (2, 5), (3, 4)]),
    st.sampled_from([None, 0.5]),
    st.booleans(),
)
def test_what_is_left_satisfies_everything_and_stays(
    seed: int, min_share: float | None, polymorphs: tuple[int, int] | None, window: float | None, trim: bool
) -> None:
    rng = np.random.default_rng(seed)
    kinds = [tuple(rng.integers(1, 8, rng.integers(2, 6)).tolist()) for _ in range(12)]
    data = make([(kind, rng.random(rng.integers(1, 8)).round(2).tolist()) for kind in kinds], seed)
    data = data.select(np.concatenate([np.arange(len(data)), rng.integers(len(data), size=3)]))
    data = with_groups(data, rng.choice([1, 2, 62, 225], len(data), p=[0.05, 0.15, 0.3, 0.5]).tolist())
    options = Curation((3, 5), True, None, window, min_share, polymorphs, trim)
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(Path(folder) / "s", data)
        try:
            curated = curate(store, options)
        except ValueError as error:
            if "curation leaves nothing" not in str(error):
                raise
            return
        before = [len(store), *(s.after for s in curated.steps)]
        assert [s.before for s in curated.steps] == before[:-1]
        assert before[-1] == len(curated.view)
        assert_satisfied(curated)
        again = curate(curated.view, options)
        np.testing.assert_array_equal(again.view._positions(None), curated.view._positions(None))
        assert not any(s.gone for s in again.steps)
