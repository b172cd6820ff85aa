"""The default data set: prototypes, relaxation (with ASE's own EMT potential), references, duplicates, the card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from pymatgen.core import Composition, Lattice, Structure

from fastcrystal.data.datasets.prototypes import DecoratedPrototype, decorate, default_formulas, library
from fastcrystal.experiments.default_data import build
from fastcrystal.experiments.default_data.build import (
    BuildConfig,
    main_formulas,
    read_records,
    relax_all,
)
from fastcrystal.experiments.default_data.finish import Finished, card, finish, formation_energy
from fastcrystal.features.elements import covalent_radius
from fastcrystal.relaxation.ase import relax, single_point
from fastcrystal.relaxation.potentials import POTENTIALS, NamedPotential, load_potential
from fastcrystal.stability.elemental import elemental_references
from fastcrystal.structure.crystal import Crystal
from fastcrystal.utils.files import cut_broken_line
from tests.factories.candidates import crystal_of
from tests.factories.crystals import crystal
from tests.factories.text import unpadded


@pytest.fixture(scope="module")
def shapes() -> list[tuple[str, Any]]:
    return library(12)


def structure(candidate: DecoratedPrototype) -> Structure:
    return candidate.crystal.to_structure()


def touching(s: Structure) -> float:
    """Closest pair in units of the sum of its covalent radii, images included."""
    radius = covalent_radius()[np.array(s.atomic_numbers)]
    pairs = zip(*s.get_neighbor_list(6.0), strict=True)
    return min(float(d / (radius[i] + radius[j])) for i, j, _, d in pairs)


def test_pymatgen_bundles_the_prototypes(shapes: list[tuple[str, Any]]) -> None:
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    assert len(AFLOW_PROTOTYPE_LIBRARY) == 288
    assert 150 < len(shapes) < 288
    sizes = [len(s) for _, s in shapes]
    assert sizes == sorted(sizes)
    assert max(sizes) <= 12
    assert [label for label, _ in library(4)] == [label for label, s in shapes if len(s) <= 4]


def test_candidates_of_tab2(shapes: list[tuple[str, Any]]) -> None:
    found = decorate("TaB2", shapes)
    assert len(found) > 10
    assert len({c.key for c in found}) == len(found)
    assert any(c.prototype == "AB2_hP3_191_a_d" for c in found)  # AlB2, its ground state
    for c in found:
        s = structure(c)
        assert s.composition.reduced_formula == "TaB2"
        assert touching(s) == pytest.approx(1, abs=1e-6)
        assert (c.crystal.species == 5).sum() == 2 * (c.crystal.species == 73).sum()


def test_equal_amounts_go_by_electronegativity(shapes: list[tuple[str, Any]]) -> None:
    binaries = [item for item in shapes if item[1].composition.anonymized_formula == "AB"]
    assert len(binaries) > 25
    for item in binaries:
        assert len(decorate("NaCl", [item])) == 1, item[0]
    # NiAs: the metal has the octahedra (P6_3/mmc, 2a), the anion the prisms (2c)
    item = next(item for item in binaries if item[0] == "AB_hP4_194_c_a")
    (nias,) = decorate("NaCl", [item])
    s = structure(nias)
    from spglib import get_symmetry_dataset

    symmetry = get_symmetry_dataset((s.lattice.matrix, s.frac_coords, s.atomic_numbers), symprec=0.01)
    letter = dict(zip(s.atomic_numbers, symmetry.wyckoffs, strict=True))
    assert letter == {11: "a", 17: "c"}
    # copper and nickel have nearly one electronegativity: both roles are tried
    assert len(decorate("CuNi", [item])) == 2


def test_two_metals_share_a_sublattice(shapes: list[tuple[str, Any]]) -> None:
    found = decorate("TaWB4", shapes)
    ordered = [c for c in found if "+" in c.prototype]
    assert ordered
    for c in ordered:
        assert structure(c).composition.reduced_composition == Composition("TaWB4")


def test_fewer_candidates_are_a_repeatable_part(shapes: list[tuple[str, Any]]) -> None:
    every = [c.key for c in decorate("TaB2", shapes)]
    few = [c.key for c in decorate("TaB2", shapes, 8)]
    assert few == [c.key for c in decorate("TaB2", shapes, 8)]
    assert len(few) == 8
    assert few[:4] == every[:4]
    assert [k for k in every if k in few] == few
    with pytest.raises(ValueError, match=r"'Ta\)B' does not parse"):
        decorate("Ta)B", shapes)


def test_default_formulas() -> None:
    groups = default_formulas()
    formulas = main_formulas()
    assert len(formulas) == len(set(formulas)) >= 100
    compositions = {f: Composition(f) for f in formulas}
    for f, c in compositions.items():
        assert c.reduced_formula == c.formula.replace(" ", "") or c.reduced_composition == c, f
    light = {"B", "C", "N"}
    wanted = [
        f
        for f, c in compositions.items()
        if light & {e.symbol for e in c} and any(e.is_transition_metal for e in c) and len(c) > 1
    ]
    assert len(wanted) >= 0.2 * len(formulas)
    system = {frozenset(e.symbol for e in c) for c in compositions.values()}
    for part in ("W", "Ta", "B", "W B", "Ta B", "Ta W", "Ta W B"):
        assert frozenset(part.split()) in system
    assert next(iter(groups)) == "W-Ta-B elements"
    # Hubbard U of the Materials Project: two energy scales
    corrected = {"V", "Cr", "Mn", "Fe", "Co", "Ni", "Mo", "W"}
    for f, c in compositions.items():
        symbols = {e.symbol for e in c}
        assert not (symbols & {"O", "F"} and symbols & corrected), f


def test_references_are_the_lowest_of_their_element() -> None:
    """matcalc lists several structures an element, not in the order of energy."""
    pytest.importorskip("matcalc", reason="needs a potential: pip install 'fastcrystal[mlip]'")
    import gzip
    from importlib import resources

    path = resources.files("matcalc").joinpath("elemental_refs/MP-PBE-Element-Refs.json.gz")
    table = json.loads(gzip.decompress(path.read_bytes()))
    for c in elemental_references(["Cu3Au", "WC", "As", "Si"]):
        energies = table[c.formula]["energy_per_atom"]
        lowest = table[c.formula]["structure"][int(np.argmin(energies))]
        primitive = Structure.from_dict(lowest).get_primitive_structure()
        assert c.crystal.num_sites == len(primitive), c.formula
        assert abs(np.linalg.det(c.crystal.lattice)) == pytest.approx(primitive.volume, rel=1e-3), c.formula


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    assert list(read_records(tmp_path)) == []
    path = tmp_path / "relaxed.jsonl"
    path.write_text('{"key": "a"}\n{"key": "b"}\n{"key": "c", "spec', encoding="utf-8")
    assert [r["key"] for r in read_records(tmp_path)] == ["a", "b"]
    assert path.read_text(encoding="utf-8").endswith("spec"), (
        "reading must not touch a file that a build may be writing"
    )
    cut_broken_line(path)
    with path.open("a", encoding="utf-8") as f:
        f.write('{"key": "c"}\n')
    assert [r["key"] for r in read_records(tmp_path)] == ["a", "b", "c"]


def test_another_build_is_refused(tmp_path: Path) -> None:
    done = {"potential": "sevennet-0", "max_sites": 12, "max_prototypes": 36, "steps": 50, "max_force": 0.1}
    (tmp_path / "build.json").write_text(json.dumps({**done, "window": 1.5, "symprec": 0.1}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"other settings \(steps was 50, now 9\)"):
        relax_all(tmp_path, replace(BuildConfig(), steps=9), ["TaB2"], 1)
    assert not (tmp_path / "relaxed.jsonl").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_relaxations_are_written_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shapes: list[tuple[str, Any]], jobs: int
) -> None:
    """Every candidate is one line, whatever became of it; here none can be relaxed, or all are by ASE's EMT."""
    monkeypatch.setattr(build, "elemental_references", lambda formulas: [])
    monkeypatch.setattr(build, "library", lambda max_sites: shapes)
    config = BuildConfig(max_prototypes=3, steps=2)
    if jobs > 1:  # a fresh process: nothing that is patched here is patched there
        monkeypatch.setitem(POTENTIALS, "none", NamedPotential("none", "none", "none", lambda device: None))
        with pytest.raises(ValueError, match=r"candidate \d: potential must be one of .*, got 'none'"):
            relax_all(tmp_path, replace(config, potential="none"), ["Cu3Au"], jobs)
        return
    monkeypatch.setattr(build, "load_potential", lambda name: EMT())
    relax_all(tmp_path, config, ["Cu3Au"], jobs)
    records = list(read_records(tmp_path))
    assert [r["key"] for r in records] == [c.key for c in decorate("Cu3Au", shapes, 3)]
    assert all("energy" in r or "reason" in r for r in records)
    relax_all(tmp_path, config, ["Cu3Au", "CuAu"], jobs)
    assert list(read_records(tmp_path))[:3] == records
    assert len({r["key"] for r in read_records(tmp_path)}) == 6


def record(s: Structure, energy: float, prototype: str = "made up", **changes: Any) -> dict[str, Any]:
    formula = s.composition.reduced_formula if len(s.composition) > 1 else s.composition.elements[0].symbol
    return {
        "key": f"{formula}:{prototype}:{energy}",
        "formula": formula,
        "prototype": prototype,
        "species": list(s.atomic_numbers),
        "frac": s.frac_coords.tolist(),
        "lattice": s.lattice.matrix.tolist(),
        "energy": energy,
        "max_force": 0.01,
        "converged": True,
        "steps": 3,
        **changes,
    }


def element(symbol: str, a: float) -> Structure:
    return Structure(Lattice.cubic(a), [symbol, symbol], [[0, 0, 0], [0.5, 0.5, 0.5]]).get_primitive_structure()


@pytest.fixture(scope="module")
def finished() -> Finished:
    salt = crystal("rocksalt", "Na", "Cl")
    larger = salt.copy()
    larger.scale_lattice(1.02 * salt.volume)
    records = [
        record(element("Na", 4.2), -1.0, "reference"),
        record(element("Na", 4.1), -1.5),  # lower than the reference: it becomes the reference
        record(element("Cl", 4.5), -2.0, "reference"),
        record(salt, -4.0, "B1"),
        record(larger, -3.99, "B1 again"),
        record(crystal("caesium", "Na", "Cl"), -3.5, "B2"),
        record(crystal("zincblende", "Na", "Cl"), -2.0, "B3"),  # 2 eV/atom above
        record(crystal("wurtzite", "Na", "Cl"), -5.0, "B4", converged=False),
        {"key": "NaCl:B5:0", "formula": "NaCl", "prototype": "B5", "reason": "ValueError: fell apart"},
        record(Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.01, 0, 0]]), -4.5, "B6"),
    ]
    return finish(records, window=1.5)


def test_finish_keeps_and_counts(finished: Finished) -> None:
    assert sorted(finished.data.labels["prototype"].tolist()) == ["B1", "B2", "made up"]
    assert finished.counts == {
        "decorated prototypes": 8,
        "failed": 1,
        "not converged": 1,
        "no canonical form": 1,
        "outside the energy window": 1,
        "duplicates": 1,
        "in the data set": 3,
    }
    first, *rest = finished.counts.values()
    assert first == sum(rest)


def test_finish_formation_energies(finished: Finished) -> None:
    assert finished.references == {"Na": -1.5, "Cl": -2.0}
    energy = dict(zip(finished.data.labels["prototype"].tolist(), finished.data.energy.tolist(), strict=True))
    assert energy["B1"] == pytest.approx(-4.0 + 1.75)
    assert energy["B2"] == pytest.approx(-3.5 + 1.75)
    assert energy["made up"] == pytest.approx(0)
    groups = dict(zip(finished.data.labels["prototype"].tolist(), finished.data.space_group.tolist(), strict=True))
    assert groups == {"B1": 225, "B2": 221, "made up": 229}


def test_finish_can_be_saved_and_read(finished: Finished, tmp_path: Path) -> None:
    from fastcrystal.data.load import load_dataset

    back = load_dataset(finished.data.save(tmp_path / "p.npz"), "prototypes")
    assert len(back) == 3
    assert set(back.formula) == {"ClNa", "Na"}


def test_ground_states_are_compared(finished: Finished) -> None:
    assert finished.checks == [{"formula": "NaCl", "known": "rocksalt, 225", "found": 225, "gap": 0.0}]
    elements = [record(element("Na", 4.2), -1.0, "reference"), record(element("Cl", 4.5), -2.0, "reference")]
    wrong = finish(
        [*elements, record(crystal("caesium", "Na", "Cl"), -4.0), record(crystal("rocksalt", "Na", "Cl"), -3.9)]
    )
    assert wrong.checks == [{"formula": "NaCl", "known": "rocksalt, 225", "found": 221, "gap": 0.1}]
    without = finish([*elements, record(crystal("caesium", "Na", "Cl"), -4.0)])
    assert without.checks[0]["gap"] is None


def test_card(finished: Finished) -> None:
    text = unpadded(card(finished, {"potential": "sevennet-0", "symprec": 0.1, "window": 1.5}, {"sevenn": "0.0"}))
    assert "SevenNet-0" in text
    assert "not DFT" in text
    assert "| duplicates | 1 |" in text
    assert "1 of 1 agree" in text
    assert "| NaCl | rocksalt, 225 | 225 | 0.000 |" in text


def test_finish_refuses() -> None:
    salt = record(crystal("rocksalt", "Na", "Cl"), -4.0)
    with pytest.raises(ValueError, match="no elemental reference for Cl, which NaCl needs"):
        finish([record(element("Na", 4.2), -1.0, "reference"), salt])
    with pytest.raises(ValueError, match="no relaxed crystal is left"):
        finish([])
    with pytest.raises(ValueError, match="no elemental reference for Cl, Na"):
        formation_energy(salt, {})


def cell(name: str, a: float) -> Crystal:
    return crystal_of(bulk(name, "fcc", a=a))


@pytest.mark.parametrize(("name", "start", "edge"), [("Cu", 3.2, 3.59), ("Ni", 4.0, 3.49)])
def test_relaxation_finds_the_volume(name: str, start: float, edge: float) -> None:
    done = relax(cell(name, start), EMT(), steps=100, max_force=0.01)
    assert done.converged
    assert done.max_force < 0.01
    assert (4 * abs(np.linalg.det(done.crystal.lattice))) ** (1 / 3) == pytest.approx(edge, abs=0.02)
    same = single_point(done.crystal, EMT())
    assert same.energy == pytest.approx(done.energy, abs=1e-6)
    from ase import Atoms

    atoms = Atoms(name, cell=done.crystal.lattice, pbc=True, calculator=EMT())
    assert abs(atoms.get_stress()[:3].mean()) < 1e-3  # eV per cubic angstrom: 0.2 GPa


def test_relaxation_moves_atoms_too() -> None:
    atoms = bulk("CuNi", "cesiumchloride", a=2.9)
    frac = atoms.get_scaled_positions() + np.array([[0, 0, 0], [0.06, 0, 0.03]])
    done = relax(crystal_of(atoms)._replace(frac=frac), EMT(), steps=200, max_force=0.02)
    assert done.converged
    assert 0 < done.steps < 200
    step = done.crystal.frac[1] - done.crystal.frac[0]
    np.testing.assert_allclose(step % 1, 0.5, atol=0.02)


def test_too_few_steps_are_not_called_converged() -> None:
    atoms = bulk("CuNi", "cesiumchloride", a=2.9)
    frac = atoms.get_scaled_positions() + np.array([[0, 0, 0], [0.06, 0, 0.03]])
    done = relax(crystal_of(atoms)._replace(frac=frac), EMT(), steps=1, max_force=1e-4)
    assert not done.converged
    assert done.max_force > 1e-4


class Pushing(Calculator):  # type: ignore[misc]
    """A potential whose pressure never ends."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {
            "energy": 0.0,
            "forces": np.zeros((len(self.atoms), 3)),
            "stress": np.array([-5.0, -5, -5, 0, 0, 0]),
        }


def test_a_cell_that_explodes_is_reported() -> None:
    with pytest.raises(ValueError, match=r"the cell changed its volume [\d.]+-fold: it fell apart"):
        relax(cell("Cu", 3.6), Pushing(), steps=200)


def test_unknown_potential() -> None:
    with pytest.raises(ValueError, match=r"potential must be one of sevennet-0, .* or MODULE:FUNCTION .*, got .lj."):
        load_potential("lj")
