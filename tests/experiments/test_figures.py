"""Figures 3 and 4: pictures that show something, and numbers that are computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.evaluation.coordinates import coordinate_distances
from fastcrystal.experiments.figures import (
    crystal_on_faces,
    draw_coordinate_distributions,
    make_figures,
    two_views,
)
from fastcrystal.loss import l1_loss, pbc_loss
from fastcrystal.utils.plotting import draw_crystals

DATA = load_dataset()
CRYSTAL = DATA.select([crystal_on_faces(DATA)])


def shaken(data: CrystalDataset, size: float) -> CrystalDataset:
    noise = np.random.default_rng(0).normal(0, size, data.frac.shape)
    return replace(data, frac=((data.frac + noise) % 1).astype(np.float32))


def run_folder(path: Path, true: CrystalDataset, made: CrystalDataset) -> Path:
    path.mkdir(parents=True)
    true.save(path / "test.npz")
    made.save(path / "generated.npz")
    return path


def colors(path: Path) -> set[tuple[int, ...]]:
    """Distinct colors of a picture, in steps of an eighth."""
    import matplotlib.pyplot as plt

    pixels = plt.imread(path)
    assert min(pixels.shape[:2]) > 50
    return set(map(tuple, (pixels[..., :3] * 8).astype(int).reshape(-1, 3).tolist()))


def test_coordinate_distributions(tmp_path: Path) -> None:
    some = DATA.select(range(0, len(DATA), 20))
    alone = colors(draw_coordinate_distributions({"data": some}, tmp_path / "alone.png", dpi=40))
    assert len(alone) > 4
    assert all(len(set(c)) == 1 for c in alone)  # the data alone are grey
    both = colors(draw_coordinate_distributions({"data": some, "made": some}, tmp_path / "both.png", dpi=40))
    assert any(r > b + 2 for r, _, b in both)  # the line of the second set is orange


def test_too_many_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="up to 4 sets of crystals, got 6 sets"):
        draw_coordinate_distributions({str(k): CRYSTAL for k in range(6)}, tmp_path / "x.png")


def test_numbers_of_the_two_views_are_the_losses() -> None:
    views = two_views(CRYSTAL, 0.02)
    true = CRYSTAL.frac
    moved = (true - np.float32(0.02)) % 1
    np.testing.assert_allclose(views.second.frac[0].numpy(), moved, atol=1e-6)
    assert views.plain == l1_loss(views.second.frac, views.first.frac).item()
    assert views.pbc == pbc_loss(views.second.frac, views.first.frac).item()
    # by hand: the mean over sites of the summed steps, and of the length of the step without its jumps
    assert views.plain == pytest.approx(np.abs(moved - true).sum(1).mean(), abs=1e-5)
    assert views.pbc == pytest.approx(0.02 * 3**0.5, rel=1e-3)
    assert views.plain > 20 * views.pbc
    assert views.crossed == (true < 0.02).any(1).sum()


def test_the_two_views_are_one_crystal() -> None:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    views = two_views(CRYSTAL)
    first, second = (batch.to_structures()[0] for batch in (views.first, views.second))
    assert StructureMatcher().get_rms_dist(first, second)[0] == pytest.approx(0, abs=1e-5)


def test_unusable_crystals_for_two_views() -> None:
    with pytest.raises(ValueError, match="two views need one crystal, got 2: select one"):
        two_views(DATA.select([0, 1]))
    with pytest.raises(ValueError, match=r"between 0 and 0\.5 of the cell, got 0\.5"):
        two_views(CRYSTAL, 0.5)
    inside = replace(CRYSTAL, frac=np.full_like(CRYSTAL.frac, 0.3))
    with pytest.raises(ValueError, match=r"displacement of 0\.02 takes no site of LaAlO3 through a face"):
        two_views(inside)
    with pytest.raises(ValueError, match="no crystal of prototypes has a site on a face"):
        crystal_on_faces(inside)


def test_the_crystal_of_figure_4() -> None:
    """Small, with as many sites on faces as any of its size, and unmoved by larger or emptier crystals before it."""
    best = crystal_on_faces(DATA)
    on_face = np.add.reduceat((DATA.frac < 1e-3).any(1).astype(int), DATA.offsets[:-1])
    small = DATA.num_sites <= 5
    assert small[best]
    assert on_face[best] == on_face[small].max()
    larger = np.flatnonzero(~small & (on_face > on_face[best]))[:3]
    assert crystal_on_faces(DATA.select([*larger, best])) == len(larger)
    assert crystal_on_faces(DATA.select(larger)) in range(len(larger))


def test_figures_of_two_runs(tmp_path: Path) -> None:
    true = DATA.select(range(0, 300, 10))
    runs = [run_folder(tmp_path / parent / "run", true, shaken(true, s)) for parent, s in (("a", 0.01), ("b", 0.1))]
    runs[0] = runs[0] / "checkpoints" / "00000012"  # a checkpoint stands for its run
    made = make_figures(runs, out=tmp_path / "out", dpi=40)
    assert [p.name for p in made.paths] == ["coordinates.png", "two_views.png"]
    assert all(len(colors(path)) > 20 for path in made.paths)
    # runs of one name are told apart by their paths
    assert list(made.distances) == [str(run) for run in runs]
    assert made.distances[str(runs[1])] == coordinate_distances(true, shaken(true, 0.1))
    text = str(made)
    assert f"{runs[0]}, x: distance from the data {made.distances[str(runs[0])]['x']['wasserstein']:.4f}" in text
    assert f"plain L1 loss {made.views.plain:.4f}, PBC loss {made.views.pbc:.4f}" in text
    assert str(made.paths[0]) in text


def test_unusable_runs(tmp_path: Path) -> None:
    true = DATA.select(range(10))
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(
        ValueError, match=r"bare has no generated\.npz: fastcrystal evaluate --checkpoint \S+bare writes"
    ):
        make_figures([bare], out=tmp_path)
    mixed = run_folder(tmp_path / "mixed", true, DATA.select(range(1, 11)))
    with pytest.raises(ValueError, match="do not belong together"):
        make_figures([mixed], out=tmp_path)
    good, other = run_folder(tmp_path / "good", true, true), DATA.select(range(10, 20))
    with pytest.raises(ValueError, match="a run is given twice"):
        make_figures([good, good], out=tmp_path)
    with pytest.raises(ValueError, match="evaluated on other test crystals"):
        make_figures([good, run_folder(tmp_path / "other", other, other)], out=tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_sheet_of_cells(tmp_path: Path) -> None:
    structures = DATA.select([0]).batch().to_structures()
    path = draw_crystals(structures, ["one"], tmp_path / "sheet.png")
    assert len(colors(path)) > 10
