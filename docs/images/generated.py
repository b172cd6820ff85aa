"""Draw generated.png: test crystals above, below each what the shipped model made from its conditions.

    python docs/images/generated.py

Chosen by a rule, not by hand: of every fourth test formula in alphabetical order the crystal that is lowest in energy;
one crystal is generated for each (100 Euler steps, seed 0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastcrystal.features.space_groups import symbol
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.structure.match import match_pairs
from fastcrystal.training.tasks import make_splits
from fastcrystal.utils.plotting import draw_cell

EVERY = 4


def main(path: Path) -> None:
    """Choose, generate, match and draw."""
    from matplotlib.figure import Figure

    model = CrystalGenerator.from_run("pretrained", "cpu")
    splits = make_splits(model.config)
    test = splits.load(splits.indices.test)
    formulas = np.unique(test.formula)[::EVERY]
    lowest = [min(np.flatnonzero(test.formula == f), key=lambda i: test.energy[i]) for f in formulas]
    chosen = test.select(np.array(lowest))
    true = chosen.batch()
    made = model.sample(true, steps=100, seed=0)
    match = match_pairs(made, true, jobs=1, progress=False).fit
    figure = Figure(figsize=(1.75 * len(formulas) + 0.3, 4.4))
    margin = 0.3 / figure.get_figwidth()
    for i, (structure, other) in enumerate(zip(true.to_structures(), made.to_structures(), strict=True)):
        width = (1 - margin) / len(formulas)
        left = margin + i * width
        for bottom, crystal in ((0.47, structure), (0.03, other)):
            axis = figure.add_axes((left, bottom, width, 0.4), projection="3d")
            draw_cell(axis, crystal)
            axis.legend(fontsize=7, frameon=False, markerscale=0.4, loc="upper left", bbox_to_anchor=(-0.02, 1.12))
        group = int(true.space_group[i])
        title = f"{structure.composition.reduced_formula}\n{symbol(group)}, {true.energy[i]:.2f} eV/atom"
        figure.text(left + width / 2, 0.9, title, ha="center", fontsize=9)
        figure.text(left + width / 2, 0.02, "match" if match[i] else "no match", ha="center", fontsize=9)
    for y, name in ((0.67, "true"), (0.23, "generated")):
        figure.text(0.004, y, name, rotation=90, va="center", fontsize=9, color="0.35")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main(Path(__file__).with_suffix(".png"))
