"""modify: a crystal in, proposals with energies and distances out."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from fastcrystal.cli.app import main
from fastcrystal.crystal import CrystalBatch
from fastcrystal.discovery.modify import Modification, modify
from fastcrystal.experiments.run import finish_training
from fastcrystal.relaxation.candidate import read_candidates
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.sampling.generator import CrystalGenerator
from tests.factories.tiny import shrink_networks, tiny_config

POTENTIAL = "ase.calculators.lj:LennardJones"


@pytest.fixture(scope="module")
def trained(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny flow between polymorphs."""
    run = tmp_path_factory.mktemp("modify") / "run"
    with pytest.MonkeyPatch.context() as patch:
        shrink_networks(patch)
        finish_training(tiny_config(tiny_npz, {"trainer.max_steps": 4}, task="modify", algo="cfm"), run)
    return str(run)


@pytest.fixture
def salt(tmp_path: Path) -> Path:
    """Rock salt, in its conventional cell."""
    path = tmp_path / "salt.cif"
    Structure.from_spacegroup(225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(str(path))
    return path


def test_proposals(trained: str, salt: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = Modification(-0.2, 221, 3, trained, steps=2, potential=POTENTIAL, relax=RelaxSettings(steps=2))
    said = modify(salt, asked, out, jobs=1)
    assert "NaCl, 2 sites" in said
    assert "asked for -0.2 eV/atom in space group 221" in said
    start, *proposals = read_candidates(out / "candidates.jsonl")
    assert (start.id, start.crystal.num_sites, start.measured["space_group"]) == ("input", 2, 225)
    assert len(proposals) == 3
    rows = list(csv.DictReader((out / "proposals.csv").open()))
    for c, row in zip(proposals, rows, strict=True):
        assert bool(row["cif"]) == (not c.reason)
        if not c.reason:
            gap = c.measured["energy"] - start.measured["energy"]
            assert float(row["energy_change"]) == pytest.approx(gap, abs=1e-4)
            assert len(Structure.from_file(out / row["cif"])) == 2
    energies = [c.measured["energy"] for c in proposals if not c.reason]
    assert energies == sorted(energies)


def test_an_element_that_the_model_does_not_know_is_refused(trained: str, tmp_path: Path) -> None:
    path = tmp_path / "xe.cif"
    Structure.from_spacegroup(225, Lattice.cubic(6.2), ["Xe"], [[0, 0, 0]]).to(str(path))
    with pytest.raises(ValueError, match=r"xe.cif: Xe is not among the \d+ elements that this model knows"):
        modify(path, Modification(checkpoint=trained, potential=None), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_shipped_model_modifies(salt: Path, tmp_path: Path) -> None:
    modify(salt, Modification(-0.1, 221, 4, steps=20, potential=None), tmp_path / "out", jobs=1)
    start, *proposals = read_candidates(tmp_path / "out" / "candidates.jsonl")
    fine = [c for c in proposals if not c.reason]
    assert fine
    assert all(sorted(c.crystal.species) == sorted(start.crystal.species) for c in fine)


def test_the_input_itself_has_distance_zero(
    trained: str, salt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that gives back what it gets: every proposal is one crystal, at no distance."""

    def copy(self: CrystalGenerator, conditions: CrystalBatch, *, initial: CrystalBatch, **how: object) -> CrystalBatch:
        assert torch.equal(conditions.energy, torch.full((4,), -0.1))
        assert torch.equal(conditions.space_group, torch.full((4,), 225))
        return initial

    monkeypatch.setattr(CrystalGenerator, "sample", copy)
    modify(salt, Modification(count=4, checkpoint=trained, potential=None), tmp_path / "out", jobs=1)
    start, *proposals = read_candidates(tmp_path / "out" / "candidates.jsonl")
    kept = [c for c in proposals if not c.reason]
    assert [c.measured["copies"] for c in kept] == [4]
    assert kept[0].measured["distance"] == pytest.approx(0, abs=1e-5)
    assert kept[0].measured["space_group"] == 225
    np.testing.assert_allclose(kept[0].crystal.lattice, start.crystal.lattice, atol=1e-5)


def test_what_cannot_be_modified(
    trained: str, tiny_run: Path, salt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = tmp_path / "large.cif"
    perovskite = (["Ca", "Mg", "O"], [[0.5, 0.5, 0.5], [0, 0, 0], [0.5, 0, 0]])
    Structure.from_spacegroup(221, Lattice.cubic(3.9), *perovskite).to(str(large))
    (tmp_path / "bad.cif").write_text("data_x\nloop_\n")
    for message, arguments in [
        ("generates from conditions alone", [salt, "--checkpoint", str(tiny_run)]),
        ("none.cif is not there: give a CIF or POSCAR", [tmp_path / "none.cif", "--checkpoint", trained]),
        (f"{tmp_path} is a folder: give a CIF or POSCAR", [tmp_path, "--checkpoint", trained]),
        ("this model takes 4", [large, "--checkpoint", trained]),
        ("bad.cif: ", [tmp_path / "bad.cif", "--checkpoint", trained]),
        ("space group must be in 1..230, got 400", [salt, "--checkpoint", trained, "--space-group", "400"]),
        ("finite number of eV/atom, got nan", [salt, "--checkpoint", trained, "--energy-change", "nan"]),
        ("count must be at least 1, got 0", [salt, "--checkpoint", trained, "--set", "count=0"]),
        ("is not a run folder", [salt, "--checkpoint", str(tmp_path)]),
    ]:
        assert main(["modify", *map(str, arguments), "--out", str(tmp_path / "out"), "--potential", "none"]) == 2
        said = capsys.readouterr().err
        assert message in said.strip().splitlines()[-1], said
