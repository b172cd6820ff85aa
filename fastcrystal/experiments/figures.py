"""Figures 3 and 4 of the paper: distributions of fractional coordinates, and two descriptions of one crystal.

Figure 3: atoms prefer special positions (0, 1/4, 1/3, ...), and a model that has learned them shows the same peaks.
Figure 4: the reason for the loss under periodic boundaries. A plain loss takes two descriptions of one crystal, shifted
a little against each other, for two very different crystals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.evaluation.coordinates import AXES, BINS, coordinate_density, coordinate_distances
from fastcrystal.loss import l1_loss, pbc_loss
from fastcrystal.structure.lattice import wrap
from fastcrystal.utils.plotting import draw_cell

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: coordinates that symmetry prefers, and how they are written
SPECIAL = {"0": 0.0, "1/4": 1 / 4, "1/3": 1 / 3, "1/2": 1 / 2, "2/3": 2 / 3, "3/4": 3 / 4}
#: most lines of coordinates under a picture
_MAX_LISTED = 8
#: told apart in color, in greyscale and by their dashes
_LINES = (("#D55E00", "-"), ("#0072B2", "--"), ("#000000", ":"), ("#882255", "-."))


@dataclass(frozen=True)
class TwoViews:
    """One crystal described twice.

    Attributes
    ----------
    first, second : CrystalBatch
        Batches of one crystal, coordinates in [0, 1), the sites in the same order.
    displacement : float
        Shift of every site along each lattice vector from the first to the second, as a fraction of the cell.
    crossed : int
        Number of sites that the shift takes through a face of the cell.
    plain, pbc : float
        `fastcrystal.loss.l1_loss` and `pbc_loss` of the second against the first.
    """

    first: CrystalBatch
    second: CrystalBatch
    displacement: float
    crossed: int
    plain: float
    pbc: float


@dataclass(frozen=True)
class Figures:
    """PNGs, and the numbers in them.

    Attributes
    ----------
    paths : list of Path
    distances : dict of str to dict
        For each run, `fastcrystal.evaluation.coordinates.coordinate_distances` of its crystals from the data.
    views : TwoViews
        The crystal of figure 4.
    """

    paths: list[Path]
    distances: dict[str, dict[str, dict[str, float]]]
    views: TwoViews

    def __str__(self) -> str:
        lines = [
            f"{name}, {axis}: distance from the data {d['wasserstein']:.4f} of the cell (Wasserstein), "
            f"{d['total_variation']:.3f} in total variation"
            for name, axes in self.distances.items()
            for axis, d in axes.items()
        ]
        losses = f"plain L1 loss {self.views.plain:.4f}, PBC loss {self.views.pbc:.4f}"
        lines.append(f"two views of {_formula(self.views.first)}: {losses}")
        return "\n".join([*lines, *(f"written: {path}" for path in self.paths)])


def make_figures(
    runs: Sequence[Path] = (), data: str | Path = "prototypes", out: Path = Path("figures"), *, dpi: int = 150
) -> Figures:
    """Draw figures 3 and 4 into a folder: coordinates.png and two_views.png.

    Parameters
    ----------
    runs : sequence of Path
        Run folders, or checkpoints in them, evaluated on the same test crystals: generated.npz of each is compared with
        the true crystals in test.npz. Without one, figure 3 shows the data set alone.
    data : str or Path
        Data set of the crystal of figure 4, by name or path.
    out : Path
        Folder, made where it is not there.
    dpi : int
        Dots per inch.

    Raises
    ------
    ValueError
        If a run has no generated.npz, or files that do not belong together, or the data set cannot be used.
    """
    whole = load_dataset(data)
    views = two_views(whole.select([crystal_on_faces(whole)]))
    sets = _sets_of_runs(runs) if runs else {whole.name: whole}
    true, *generated = sets.items()
    distances = {name: coordinate_distances(true[1], crystals) for name, crystals in generated}
    out.mkdir(parents=True, exist_ok=True)
    paths = [
        draw_coordinate_distributions(sets, out / "coordinates.png", dpi=dpi),
        draw_two_views(views, out / "two_views.png", dpi=dpi),
    ]
    return Figures(paths, distances, views)


def draw_coordinate_distributions(sets: dict[str, CrystalDataset], path: Path, *, dpi: int = 150) -> Path:
    """Figure 3: histograms of the fractional coordinates, the three axes together and each alone.

    Parameters
    ----------
    sets : dict of str to CrystalDataset
        Name in the legend -> crystals. The first are the data, filled grey; then up to four sets of generated crystals,
        as lines, with their distances from the data.
    path : Path
        PNG to write.
    dpi : int
        Dots per inch.

    Raises
    ------
    ValueError
        If there is no set or more than five, or a coordinate is not finite.
    """
    if not 1 <= len(sets) <= 1 + len(_LINES):
        raise ValueError(f"figure 3 shows the data and up to {len(_LINES)} sets of crystals, got {len(sets)} sets")
    from matplotlib.figure import Figure

    (data_name, data), *generated = sets.items()
    distances = {name: coordinate_distances(data, crystals) for name, crystals in generated}
    figure = Figure(figsize=(9, 6.2))
    panels: dict[str, Any] = figure.subplot_mosaic([["all"] * 3, ["x", "y", "z"]], height_ratios=(1.3, 1), sharey=True)
    figure.subplots_adjust(left=0.055, right=0.99, bottom=0.105, top=0.985, wspace=0.06, hspace=0.24)
    edges = (np.arange(BINS + 1) - 0.5) / BINS
    for name, columns in AXES.items():
        axis, whole = panels[name], name == "all"
        label = _label(data_name, data) if whole else None
        axis.stairs(coordinate_density(data.frac[:, columns]), edges, fill=True, color="0.78", label=label)
        for (set_name, crystals), (color, dashes) in zip(generated, _LINES, strict=False):
            d = distances[set_name][name]
            numbers = f"$W_1$ {d['wasserstein']:.3f}, TV {d['total_variation']:.2f}"
            label = f"{_label(set_name, crystals)}; {numbers}" if whole else numbers
            density = coordinate_density(crystals.frac[:, columns])
            axis.stairs(density, edges, color=color, linestyle=dashes, linewidth=1.3, label=label)
        _finish_distribution(axis, "fractional coordinates, the three axes together" if whole else name, whole)
    if generated:
        note = "$W_1$: Wasserstein distance from the data, around the cell; TV: total variation of the histograms"
        figure.text(0.5, 0.012, note, ha="center", fontsize=7.5, color="0.35")
    figure.savefig(path, dpi=dpi)
    return path


def crystal_on_faces(data: CrystalDataset) -> int:
    """Position of the crystal of figure 4.

    Of those with a site on a face of the cell and up to 5 sites (where all are larger, of the smallest): the one with
    most sites on faces, then of most elements, then lowest in energy, then the first.

    Raises
    ------
    ValueError
        If no crystal has a site on a face.
    """
    rows = np.repeat(np.arange(len(data)), data.num_sites)
    on_face = np.bincount(rows, weights=(data.frac < 1e-3).any(1), minlength=len(data))
    elements = np.bincount(np.unique(np.stack([rows, data.species]), axis=1)[0], minlength=len(data))
    if not on_face.any():
        raise ValueError(f"no crystal of {data.name} has a site on a face of its cell: figure 4 needs another data set")
    usable = np.flatnonzero(on_face)
    usable = usable[data.num_sites[usable] <= max(5, int(data.num_sites[usable].min()))]
    energy = np.nan_to_num(data.energy, nan=np.inf)
    return int(usable[np.lexsort((energy[usable], -elements[usable], -on_face[usable]))[0]])


def two_views(crystal: CrystalDataset, displacement: float = 0.02) -> TwoViews:
    """A crystal and the same crystal with all sites shifted towards the origin, wrapped into the cell.

    A site on a face leaves the cell and comes in at the far side: its coordinate goes from 0 to nearly 1.

    Parameters
    ----------
    crystal : CrystalDataset
        One crystal.
    displacement : float
        Along each lattice vector, as a fraction of the cell, in 0..1/2.

    Raises
    ------
    ValueError
        If there is not one crystal, the displacement is not in range, or it takes no site through a face.
    """
    if len(crystal) != 1:
        raise ValueError(f"two views need one crystal, got {len(crystal)}: select one")
    if not 0 < displacement < 0.5:
        raise ValueError(f"the displacement must be between 0 and 0.5 of the cell, got {displacement:g}")
    first = crystal.batch()
    second = replace(first, frac=torch.from_numpy(wrap(first.frac.numpy() - np.float32(displacement))))
    crossed = int((second.frac > first.frac).any(-1).sum())
    if not crossed:
        raise ValueError(f"a displacement of {displacement:g} takes no site of {_formula(first)} through a face")
    plain, pbc = (loss(second.frac, first.frac, first.num_sites).item() for loss in (l1_loss, pbc_loss))
    return TwoViews(first, second, displacement, crossed, plain, pbc)


def draw_two_views(views: TwoViews, path: Path, *, dpi: int = 150) -> Path:
    """Figure 4: two descriptions of one crystal side by side, and the plain and the PBC loss between them.

    Parameters
    ----------
    views : TwoViews
    path : Path
        PNG to write.
    dpi : int
        Dots per inch.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 5.2))
    moved = f"the same crystal, moved by -{views.displacement:g} along each axis"
    titles = (f"{_formula(views.first)} as in the data", moved)
    for k, (batch, title) in enumerate(zip((views.first, views.second), titles, strict=True)):
        axis = figure.add_axes((0.5 * k, 0.32, 0.5, 0.63), projection="3d")
        structure = batch.to_structures()[0]
        draw_cell(axis, structure, margin=max(0.03, 1.5 * views.displacement), faint_copies=True)
        middle: dict[str, Any] = {"x": 0.25 + 0.5 * k, "ha": "center"}
        figure.text(y=0.95, s=title, fontsize=9.5, **middle)
        figure.text(y=0.32, s=_listing(structure), va="top", family="monospace", fontsize=8, **middle)
    losses = f"plain L1 loss {views.plain:.3f}        PBC loss {views.pbc:.3f}"
    figure.text(0.5, 0.06, losses, ha="center", fontsize=12)
    note = "solid: the sites as they are written; pale: their images in the neighboring cells"
    figure.text(0.5, 0.02, note, ha="center", fontsize=7.5, color="0.35")
    figure.savefig(path, dpi=dpi)
    return path


def _sets_of_runs(runs: Sequence[Path]) -> dict[str, CrystalDataset]:
    """The test crystals that the runs share, then the generated crystals of each."""
    from fastcrystal.training.checkpoint import run_folder

    folders = [run_folder(Path(run).resolve()) for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError(f"a run is given twice: {', '.join(map(str, runs))}")
    names = [f.name for f in folders]
    sets: dict[str, CrystalDataset] = {}
    for folder, name, given in zip(folders, names, runs, strict=True):
        true, made = _crystals_of_run(folder)
        first = sets.setdefault("test crystals", true)
        if true.fingerprint() != first.fingerprint():
            raise ValueError(f"{folder} was evaluated on other test crystals than {folders[0]}: draw them one by one")
        sets[name if names.count(name) == 1 else str(given)] = made
    return sets


def _crystals_of_run(folder: Path) -> tuple[CrystalDataset, CrystalDataset]:
    for name in ("generated.npz", "test.npz"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: fastcrystal evaluate --checkpoint {folder} writes it")
    true, made = load_dataset(folder / "test.npz"), load_dataset(folder / "generated.npz")
    if not (np.array_equal(true.num_sites, made.num_sites) and np.array_equal(true.formula, made.formula)):
        raise ValueError(
            f"generated.npz and test.npz in {folder} do not belong together: "
            f"fastcrystal evaluate --checkpoint {folder} writes both"
        )
    return true, made


def _label(name: str, crystals: CrystalDataset) -> str:
    return f"{name}: {len(crystals):,} crystals, {len(crystals.frac):,} sites"


def _finish_distribution(axis: Any, xlabel: str, whole: bool) -> None:
    axis.set_xlim(-0.5 / BINS, 1 - 0.5 / BINS)
    axis.set_xticks(list(SPECIAL.values()), list(SPECIAL))
    axis.tick_params(labelsize=9 if whole else 7.5)
    axis.set_xlabel(xlabel)
    if whole or xlabel == "x":
        axis.set_ylabel("density")
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=8, frameon=False, loc="upper right")
    axis.spines[["top", "right"]].set_visible(False)


def _formula(batch: CrystalBatch) -> str:
    formula: str = batch.to_structures()[0].composition.reduced_formula
    return formula


def _listing(structure: Structure) -> str:
    """Species and coordinates, one site in a line."""
    shown = list(structure) if len(structure) <= _MAX_LISTED else structure[: _MAX_LISTED - 1]
    lines = [f"{s.specie.symbol:2} " + " ".join(f"{x:5.2f}" for x in s.frac_coords) for s in shown]
    return "\n".join(lines if len(shown) == len(structure) else [*lines, f"... of {len(structure)} sites"])
