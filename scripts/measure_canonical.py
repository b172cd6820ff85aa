"""Share of crystals that keep their canonical matrix when they are described another way.

    python scripts/measure_canonical.py DATA.npz [--count 1000] [--seed 0] [--jobs 2] [--source NAME]

Draws crystals from a data set, describes each in other ways (rotated, shifted, permuted, in another cell, in a
supercell, all at once, with noise), and prints a Markdown table: how many come out with the same canonical matrix,
with 95 % Wilson intervals, and how many still match the original for pymatgen's StructureMatcher.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from fastcrystal.data.load import load_dataset
from fastcrystal.structure.crystal import Crystal
from fastcrystal.symmetry.canonical import Canonical, canonicalize
from fastcrystal.utils.tables import markdown_table

Change = Callable[[Crystal, np.random.Generator], Crystal]
#: matrices nearer than this (fraction of a cell edge; angstrom for the lattice) are the same matrix
TOLERANCE = 1e-3


def rotated(cell: Crystal, rng: np.random.Generator) -> Crystal:
    """A random proper rotation of the lattice."""
    species, frac, lattice = cell
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return Crystal(species, frac, lattice @ (q * np.linalg.det(q)))


def shifted(cell: Crystal, rng: np.random.Generator) -> Crystal:
    """A random origin."""
    species, frac, lattice = cell
    return Crystal(species, frac + rng.random(3), lattice)


def permuted(cell: Crystal, rng: np.random.Generator) -> Crystal:
    """A random order of sites."""
    species, frac, lattice = cell
    order = rng.permutation(len(species))
    return Crystal(species[order], frac[order], lattice)


def recelled(cell: Crystal, rng: np.random.Generator) -> Crystal:
    """Another basis of the same lattice: a random unimodular matrix of determinant 1, entries up to about 5."""
    species, frac, lattice = cell
    change = np.eye(3)
    for _ in range(4):
        i, j = rng.permutation(3)[:2]
        change[i] += rng.integers(-2, 3) * change[j]
    return Crystal(species, frac @ np.linalg.inv(change), change @ lattice)


def doubled(cell: Crystal, rng: np.random.Generator) -> Crystal:
    """A supercell, doubled along a random axis."""
    species, frac, lattice = cell
    axis = int(rng.integers(3))
    half = frac.copy()
    half[:, axis] /= 2
    other = half.copy()
    other[:, axis] += 0.5
    size = np.ones(3)
    size[axis] = 2
    return Crystal(np.concatenate([species, species]), np.concatenate([half, other]), lattice * size[:, None])


def noisy(cell: Crystal, rng: np.random.Generator) -> Crystal:
    """Every site moved by 1e-4 angstrom in a random direction."""
    species, frac, lattice = cell
    step = rng.normal(size=frac.shape)
    step *= 1e-4 / np.linalg.norm(step, axis=1, keepdims=True)
    return Crystal(species, frac + step @ np.linalg.inv(lattice), lattice)


def chain(*changes: Change) -> Change:
    """One change after another."""

    def all_of(cell: Crystal, rng: np.random.Generator) -> Crystal:
        for change in changes:
            cell = change(cell, rng)
        return cell

    return all_of


CHANGES: dict[str, Change] = {
    "rotation": rotated,
    "origin shift": shifted,
    "site order": permuted,
    "cell choice": recelled,
    "supercell 2x1x1": doubled,
    "all at once": chain(doubled, recelled, shifted, permuted, rotated),
    "noise 1e-4 angstrom": noisy,
    "all at once and noise": chain(doubled, noisy, recelled, shifted, permuted, rotated),
}


def difference(a: Canonical, b: Canonical) -> str:
    """ "same", or the first way in which two canonical forms differ."""
    one, two = a.crystal, b.crystal
    if a.space_group != b.space_group:
        return "space group"
    if one.species.tolist() != two.species.tolist():
        return "species"
    if np.abs(one.lattice - two.lattice).max() >= TOLERANCE:
        return "lattice"
    step = one.frac - two.frac
    return "same" if np.abs(step - np.round(step)).max() < TOLERANCE else "coordinates"


def measure(cell: Crystal, seed: int) -> tuple[dict[str, tuple[str, bool]], float]:
    """Outcome of every change of one crystal, and whether it matches; and the seconds of one canonical form."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    start = time.perf_counter()
    try:
        reference = canonicalize(*cell)
    except ValueError:
        return {}, 0.0
    seconds = time.perf_counter() - start
    match = StructureMatcher().fit
    original = cell.to_structure()
    out = {"as given": ("same", bool(match(original, reference.crystal.to_structure())))}
    for i, (name, change) in enumerate(CHANGES.items()):
        try:
            form = canonicalize(*change(cell, np.random.default_rng([seed, i])))
        except ValueError as error:
            out[name] = (f"rejected: {error}", False)
            continue
        how = difference(reference, form)
        # the same matrix is the same structure: match it once only
        out[name] = (how, out["as given"][1] if how == "same" else bool(match(original, form.crystal.to_structure())))
    return out, seconds


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share k / n."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.96, k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="an .npz data set")
    parser.add_argument("--count", type=int, default=1000, help="crystals to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--source", help="keep only this source")
    args = parser.parse_args()
    data = load_dataset(args.data, args.source)
    rng = np.random.default_rng(args.seed)
    drawn = np.sort(rng.choice(len(data), min(args.count, len(data)), replace=False))
    data = data.select(drawn)
    with ProcessPoolExecutor(args.jobs) as pool:
        results = list(pool.map(measure, data, drawn.tolist(), chunksize=8))
    outcomes = [r[0] for r in results if r[0]]
    seconds = [r[1] for r in results if r[0]]
    n = len(outcomes)
    print(
        f"{len(data)} crystals drawn, {n} with a canonical form (the rest: over 60 sites); "
        f"median {1e3 * float(np.median(seconds)):.1f} ms, mean {1e3 * float(np.mean(seconds)):.1f} ms a crystal\n"
    )
    rows = []
    for name in ["as given", *CHANGES]:
        kinds = Counter(o[name][0].split(":")[0] for o in outcomes)
        same = kinds.pop("same", 0)
        low, high = wilson(same, n)
        match = sum(o[name][1] for o in outcomes)
        why = ", ".join(f"{k} {v}" for k, v in kinds.most_common()) or None
        share = f"{same / max(n, 1):.2%} ({low:.2%} to {high:.2%})"
        rows.append((name, f"{same} / {n}", share, f"{match} / {n}", why))
    print(markdown_table(rows, ["change", "same matrix", "share, 95 % interval", "matches the original", "differs in"]))


if __name__ == "__main__":
    main()
