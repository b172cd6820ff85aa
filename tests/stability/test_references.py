"""References of a chemical system: which, relaxed once, kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastcrystal.relaxation import folder
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.candidates import relax_candidates
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.stability.hull import Hull
from fastcrystal.stability.references import default_cache, reference_entries, references
from tests.factories.candidates import without_matcalc

EMT = "ase.calculators.emt:EMT"


@pytest.fixture
def elements(monkeypatch: pytest.MonkeyPatch) -> None:
    without_matcalc(monkeypatch)


@pytest.mark.usefixtures("elements")
def test_what_is_in_a_system() -> None:
    found = references(["Cu", "Au"], per_formula=2)
    assert [c.id for c in found[:2]] == ["Au:reference", "Cu:reference"]
    formulas = {c.structure().composition.reduced_formula for c in found}
    assert {"Cu3Au", "CuAu"} <= formulas  # shipped; a simple stoichiometry beside it
    ids = [c.id for c in found]
    assert len(ids) == len(set(ids))
    shipped = [c for c in found if c.structure().composition.reduced_formula == "Cu3Au"]
    assert 1 <= len(shipped) <= 2
    with pytest.raises(ValueError, match="no element 'Xx'"):
        references(["Xx"])
    with pytest.raises(ValueError, match=r"a chemical system has 1\.\.8 elements, got 0"):
        references([])


@pytest.mark.usefixtures("elements")
def test_relaxed_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"per_formula": 1, "cache": tmp_path, "jobs": 1, "progress": False}
    entries = reference_entries(["Cu", "Au"], EMT, **options)  # type: ignore[arg-type]
    Hull(entries).check_terminals(["Cu", "Au"])
    assert len({e.scale for e in entries}) == 1
    (path,) = tmp_path.glob("*.jsonl")
    lines = path.read_text().splitlines()
    # a kill in the middle of a line: that one is made again, and no other
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:50])
    made_again: list[str] = []

    def counting(candidates: list[Candidate], *args: object, **kwargs: object) -> object:
        made_again.extend(c.id for c in candidates)
        return relax_candidates(candidates, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(folder, "relax_candidates", counting)
    again = reference_entries(["Cu", "Au"], EMT, **options)  # type: ignore[arg-type]
    assert made_again == [Candidate.from_json(lines[-1]).id]
    assert again == entries
    # a time limit does not change an energy; a force threshold does
    reference_entries(["Cu"], EMT, RelaxSettings(time_limit=7), **options)  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    reference_entries(["Cu"], EMT, RelaxSettings(max_force=0.2, cell="fixed"), **options)  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


@pytest.mark.usefixtures("elements")
def test_element_that_cannot_be_relaxed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no reference for W with {EMT}: W:reference: relaxation failed: .*No EMT"):
        reference_entries(["Cu", "W"], EMT, per_formula=1, cache=tmp_path, jobs=1, progress=False)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/fastcrystal/references")


def test_references_leave_saddle_points() -> None:
    """Displaced alike every time, by the same length in any cell, and no two structures alike."""
    from fastcrystal.stability.references import DISPLACEMENT, _shipped, displaced

    made = _shipped(["W", "Ta", "B"], 4)
    assert len(made) > 10
    for c in made:
        species, frac, lattice = displaced(c).crystal
        assert displaced(c) == displaced(c)
        assert np.array_equal(species, c.crystal.species)
        assert np.array_equal(lattice, c.crystal.lattice)
        step = (frac - c.crystal.frac) @ lattice
        assert 0 < np.abs(step).max() < 6 * DISPLACEMENT
    steps = np.concatenate([((displaced(c).crystal.frac - c.crystal.frac) @ c.crystal.lattice).ravel() for c in made])
    assert np.std(steps) == pytest.approx(DISPLACEMENT, rel=0.2)
