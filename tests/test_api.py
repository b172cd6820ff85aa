"""The names that `import fastcrystal as fc` offers, and the lines that the README begins with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pymatgen.core import Composition, Structure

import fastcrystal as fc
from fastcrystal.evaluation import Evaluation
from tests.factories.tiny import match_in_process


def test_public_names() -> None:
    names = ["CrystalBatch", "CrystalDataset", "CrystalGenerator", "evaluate", "l1_loss", "load_dataset", "load_model"]
    assert fc.__all__ == [*names, "pbc_loss"]
    assert set(fc.__all__) <= set(dir(fc))
    for name in fc.__all__:
        assert getattr(fc, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'load_modle'"):
        fc.load_modle  # noqa: B018


def test_from_a_formula_to_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match_in_process(monkeypatch)
    model = fc.load_model("pretrained", device="cpu")
    crystals = model.generate("TaB2", space_group=191, energy=-0.6, count=2, steps=3)
    assert isinstance(crystals, fc.CrystalBatch)
    structures = crystals.to_structures()
    assert [s.composition for s in structures] == [Composition("TaB2")] * 2
    paths = crystals.to_cif(tmp_path / "new" / "out")
    assert [p.name for p in paths] == ["000.cif", "001.cif"]
    for path, structure in zip(paths, structures, strict=True):
        read = Structure.from_file(path)
        assert read.composition == structure.composition
        assert read.volume == pytest.approx(structure.volume, rel=1e-4)
    report = fc.evaluate(structures, reference=crystals)
    assert isinstance(report, Evaluation)
    assert report.values()["n_reference"] == 2


def test_a_request_may_leave_conditions_out() -> None:
    model = fc.load_model(device="cpu")
    one, again, other = (model.generate("NaCl", count=2, steps=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.lattice, again.lattice)
    assert not torch.equal(one.lattice, other.lattice)
    assert model.generate("NaCl", 225, -2.0, 1, formula_units=2, steps=1).num_sites.tolist() == [4]
    with pytest.raises(ValueError, match="unknown element 'Xx'"):
        model.generate("Xx")
    with pytest.raises(ValueError, match=r"space group must be in 1\.\.230, got 300"):
        model.generate("NaCl", space_group=300)


def test_a_crystal_that_is_none_is_not_written(tmp_path: Path) -> None:
    model = fc.load_model(device="cpu")
    crystals = model.generate("NaCl", count=2, steps=1)
    crystals.lattice[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="lattice of crystal 1 is not finite"):
        crystals.to_cif(tmp_path / "out")
    assert not (tmp_path / "out").exists()
