"""Build fastcrystal/features/elements.npz: 22 properties of the elements 1..103 (needs mendeleev).

    python scripts/build_element_table.py [elements.npz]

Values come from mendeleev 1.3. What it lacks is imputed by kernel ridge regression: a Gaussian kernel over the
properties known for all 103 elements (position in the table, electron counts, weight, ionisation energy,
polarisability, density, Pyykkö's radius), its width and ridge chosen per property by the leave-one-out error, the
prediction clipped to the range of the known values. The file holds that error too. Each imputed value is flagged.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from mendeleev import element
from mendeleev.fetch import fetch_table
from numpy.typing import NDArray

LAST = 103
#: name, unit, source; the order of the columns
PROPERTIES = (
    ("period", "1", "row of the periodic table"),
    ("group", "1", "IUPAC group 1..18; 3 for the f block"),
    ("block", "1", "angular momentum of the block: s 0, p 1, d 2, f 3"),
    ("pettifor_number", "1", "Pettifor's chemical scale, 1..103"),
    ("atomic_weight", "u", "IUPAC; the longest-lived isotope where no standard weight exists"),
    ("s_electrons", "1", "s electrons outside the noble-gas core"),
    ("p_electrons", "1", "p electrons outside the noble-gas core"),
    ("d_electrons", "1", "d electrons outside the noble-gas core"),
    ("f_electrons", "1", "f electrons outside the noble-gas core"),
    ("unpaired_electrons", "1", "of the ground-state configuration"),
    ("covalent_radius", "angstrom", "Cordero et al. 2008"),
    ("atomic_radius", "angstrom", "Slater 1964"),
    ("vdw_radius", "angstrom", "Alvarez 2013"),
    ("electronegativity_pauling", "1", "Pauling scale"),
    ("electronegativity_allen", "eV", "Allen's configuration energy"),
    ("electron_affinity", "eV", "0 where the anion is not bound"),
    ("ionisation_energy", "eV", "first"),
    ("dipole_polarisability", "bohr^3", "Schwerdtfeger and Nagle 2018"),
    ("melting_point", "K", "1 atm; carbon at its triple point, helium at 2.5 MPa"),
    ("boiling_point", "K", "1 atm; sublimation point of C and As"),
    ("density", "g/cm^3", "295 K, 1 atm"),
    ("atomisation_enthalpy", "kJ/mol", "to the gaseous atom, 298 K; 0 for noble gases"),
)
#: no bound anion: mendeleev has nothing, or the energy of a resonance (He -19.7 eV)
UNBOUND = ("He", "Be", "N", "Ne", "Mg", "Ar", "Mn", "Zn", "Kr", "Cd", "Xe", "Yb", "Hg", "Rn")
#: monatomic already: nothing to atomise
NOBLE = ("He", "Ne", "Ar", "Kr", "Xe", "Rn")
#: melting points mendeleev lacks (K): neither melts at 1 atm. CRC Handbook; mendeleev's graphite triple point
MELTING = {"He": 0.95, "C": 4762.15}
NOBLE_CORES = (0, 2, 10, 18, 36, 54, 86)
SHELL_CAPACITY = {"s": 2, "p": 6, "d": 10, "f": 14}


def main(path: Path) -> None:
    """Collect, impute, standardize and write."""
    symbols, raw, extra = collect()
    names = [p[0] for p in PROPERTIES]
    complete = [i for i in range(len(names)) if not np.isnan(raw[:, i]).any()]
    inputs = np.concatenate([raw[:, complete], extra], axis=1)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    imputed = np.isnan(raw)
    error = np.zeros(len(names))
    for i in np.flatnonzero(imputed.any(0)):
        raw[:, i], error[i] = impute(inputs, raw[:, i])
        print(f"{names[i]:28s} {imputed[:, i].sum():3d} imputed, leave-one-out RMSE {error[i]:.3g} {PROPERTIES[i][1]}")
    standard = (raw - raw.mean(0)) / raw.std(0)

    def padded(table: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.zeros_like(table[:1]), table])

    np.savez_compressed(
        path,
        symbols=np.array(["", *symbols]),
        names=np.array(names),
        units=np.array([p[1] for p in PROPERTIES]),
        sources=np.array([p[2] for p in PROPERTIES]),
        raw=padded(raw),
        values=padded(standard).astype(np.float32),
        imputed=padded(imputed),
        loo_rmse=error,
    )
    print(f"{path}: {imputed.sum()} of {imputed.size} values imputed, {path.stat().st_size} bytes")


def collect() -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Symbols, the raw table (103, 22) with NaN where unknown, and Pyykkö's radii (103, 1) to help the imputation."""
    table = fetch_table("elements").set_index("atomic_number").loc[1:LAST]
    phases = fetch_table("phasetransitions")
    # allotropes: the row of melting, not of a solid-solid transition; red phosphorus sublimes, white melts
    phases = phases[(phases.is_transition != 1) & ~((phases.atomic_number == 15) & (phases.allotrope != "white"))]
    phases = phases.set_index("atomic_number").sort_index()
    ions = fetch_table("ionizationenergies")
    ions = ions[ions.ion_charge == 0].set_index("atomic_number")
    symbols = table.symbol.tolist()
    index = {s: i for i, s in enumerate(symbols)}

    affinity = table.electron_affinity.to_numpy(float, copy=True)
    affinity[[index[s] for s in UNBOUND]] = 0.0
    atomisation = table.heat_of_formation.to_numpy(float, copy=True)
    atomisation[[index[s] for s in NOBLE]] = 0.0
    melting = phases.melting_point.reindex(table.index).to_numpy(float, copy=True)
    for symbol, kelvin in MELTING.items():
        melting[index[symbol]] = kelvin
    electrons = np.array([valence_electrons(z) for z in range(1, LAST + 1)], dtype=float)
    columns = [
        table.period,
        table.group_id.fillna(3),
        table.block.map({"s": 0, "p": 1, "d": 2, "f": 3}),
        table.pettifor_number,
        table.atomic_weight,
        *electrons.T,
        table.covalent_radius_cordero / 100,  # pm to angstrom
        table.atomic_radius / 100,
        table.vdw_radius_alvarez / 100,
        table.en_pauling,
        table.en_allen,
        affinity,
        ions.ionization_energy.reindex(table.index),
        table.dipole_polarizability,
        melting,
        phases.boiling_point.reindex(table.index),
        table.density,
        atomisation,
    ]
    raw = np.stack([np.asarray(c, dtype=np.float64) for c in columns], axis=1)
    assert raw.shape == (LAST, len(PROPERTIES)), raw.shape
    return symbols, raw, table[["covalent_radius_pyykko"]].to_numpy(float)


def valence_electrons(z: int) -> list[int]:
    """Electrons outside the noble-gas core by s, p, d, f, then the unpaired ones of the ground state."""
    shells = element(z).ec.conf
    count = dict.fromkeys("spdf", 0)
    for (_, kind), n in shells.items():
        count[kind] += n
    core = max(c for c in NOBLE_CORES if c < z)
    if core:
        for (_, kind), n in element(core).ec.conf.items():
            count[kind] -= n
    unpaired = sum(min(n, SHELL_CAPACITY[kind] - n) for (_, kind), n in shells.items())  # Hund's first rule
    assert sum(count.values()) == z - core, (z, count)
    return [*count.values(), unpaired]


def impute(inputs: NDArray[np.float64], column: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Fill the NaNs of `column` by kernel ridge regression on `inputs`; also the leave-one-out RMSE on the known."""
    known = ~np.isnan(column)
    y = column[known]
    mean = y.mean()
    distance = ((inputs[:, None] - inputs[None]) ** 2).sum(-1)
    best: tuple[float, NDArray[np.float64]] | None = None
    for width in (1.0, 2.0, 4.0, 8.0, 16.0):
        kernel = np.exp(-distance / (2 * width**2))
        for ridge in (1e-3, 1e-2, 1e-1, 1.0):
            inverse = np.linalg.inv(kernel[np.ix_(known, known)] + ridge * np.eye(len(y)))
            weights = inverse @ (y - mean)
            rmse = float(np.sqrt(np.mean((weights / np.diag(inverse)) ** 2)))  # leave-one-out residuals, closed form
            if best is None or rmse < best[0]:
                best = rmse, mean + kernel[np.ix_(~known, known)] @ weights
    assert best is not None
    filled = column.copy()
    filled[~known] = np.clip(best[1], y.min(), y.max())
    return filled, best[0]


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "fastcrystal" / "features" / "elements.npz"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
