"""What is read of a source: every digit of a file, in its order, and only the formulas that are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from fastcrystal.data.readers import read_structures
from fastcrystal.evaluation.inputs import kind_of_reject, read_crystals
from tests.factories.crystal_files import salts, write
from tests.factories.crystals import crystal


def test_every_digit_of_a_file(tmp_path: Path) -> None:
    structures = salts()
    got = read_crystals(write(tmp_path, structures), jobs=1)
    assert got.ids == list(structures)
    assert got.data.formula.tolist() == ["ClNa"] * 5
    for i, item in enumerate(read_structures(tmp_path)):
        species, frac, lattice = got.data[i]
        np.testing.assert_array_equal(lattice, item.structure.lattice.matrix)  # type: ignore[union-attr]
        np.testing.assert_array_equal(species, item.structure.atomic_numbers)  # type: ignore[union-attr]
        np.testing.assert_array_equal(frac, item.structure.frac_coords)  # type: ignore[union-attr]
    batch = got.data.batch(np.array([4, 1]))
    assert batch.frac.dtype == batch.lattice.dtype == torch.float64
    assert batch.num_sites.tolist() == [2, 4]
    two: list[Structure] = batch.to_structures()
    np.testing.assert_array_equal(two[1].lattice.matrix, got.data.lattice[1])


def test_only_the_formulas_asked_for(tiny_npz: Path, tmp_path: Path) -> None:
    packed = read_crystals(tiny_npz, formulas=["FLi", "ClNa", "XeYb"])
    assert sorted(set(packed.data.formula.tolist())) == ["ClNa", "FLi"]
    assert (len(packed), packed.n_total) == (4, 60)
    assert sum((packed.stored_groups or {}).values()) == 60
    files = write(tmp_path, {"a": crystal("rocksalt", "Na", "Cl"), "b": crystal("rutile", "Ti", "O")})
    some = read_crystals(files, formulas=["O2Ti"], jobs=1)
    assert (some.ids, some.n_total, some.data.species.tolist()) == (["b"], 2, [22, 22, 8, 8, 8, 8])
    none = read_crystals(files, formulas=["FLi"], jobs=1)
    assert (len(none), none.n_total, len(none.data.batch(np.zeros(0, dtype=np.int64)))) == (0, 2, 0)


def test_rejects_are_kept_with_their_kind(tmp_path: Path) -> None:
    near, flat = crystal("rocksalt", "Na", "Cl"), crystal("rocksalt", "Na", "Cl")
    near.translate_sites([0], [0.45, 0.45, 0.45])
    write(tmp_path, {"a": flat, "near": near})
    (tmp_path / "torn.cif").write_text((tmp_path / "a.cif").read_text()[:300], encoding="utf-8")
    flat_poscar = "x\n1.0\n5 0 0\n0 5 0\n5 5 0\nNa\n1\nDirect\n0 0 0\n"
    (tmp_path / "flat.vasp").write_text(flat_poscar, encoding="utf-8")
    got = read_crystals(tmp_path, jobs=1)
    assert got.ids == ["a"]
    kinds = {r.id: kind_of_reject(r.reason) for r in got.rejects}
    assert kinds == {"near": "atoms too close", "torn": "unreadable", "flat": "degenerate lattice"}


def test_nothing_to_evaluate_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file or folder at"):
        read_crystals(tmp_path / "gone")
    with pytest.raises(ValueError, match="no CIF or POSCAR files in"):
        read_crystals(tmp_path)
    (tmp_path / "x.cif").write_text("data_x\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"none of the 1 structures in .* can be read \(x: "):
        read_crystals(tmp_path)
