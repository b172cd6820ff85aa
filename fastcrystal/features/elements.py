"""Elements as model inputs: a one-hot of 103 and 22 physical properties (paper, section 2.1).

The table is `elements.npz`, written by `scripts/build_element_table.py` from mendeleev. Columns, in order:

    period, group (3 for the f block), block (s 0, p 1, d 2, f 3), Pettifor's chemical scale, atomic weight (u),
    s, p, d and f electrons outside the noble-gas core, unpaired electrons,
    covalent (Cordero), atomic (Slater) and van der Waals (Alvarez) radius (angstrom),
    electronegativity of Pauling and of Allen (eV), electron affinity (eV; 0 where the anion is not bound),
    first ionisation energy (eV), dipole polarisability (bohr^3), melting and boiling point (K), density (g/cm^3),
    enthalpy of atomisation (kJ/mol)

Values nobody has measured are imputed by kernel ridge regression on the properties known for every element, clipped
to the range of the known values, and flagged in `imputed`; `loo_rmse` is the leave-one-out error of that regression.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

#: heaviest element of the table
LAST = 103
#: number of physical properties
NUM_PROPERTIES = 22
_ELEMENTS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr "
    "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu "
    "Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr"
)
#: chemical symbols; the index is the atomic number, '' at 0 is padding
SYMBOLS: tuple[str, ...] = ("", *_ELEMENTS.split())
_NUMBER = {symbol: z for z, symbol in enumerate(SYMBOLS) if symbol}


@dataclass(frozen=True, eq=False)
class ElementTable:
    """Properties of the elements; row z is element z, row 0 is padding and zero. The arrays are read-only."""

    values: NDArray[np.float32]
    """(104, 22) float32: standardized: each column has zero mean and unit (population) variance over the rows
    1..103."""
    raw: NDArray[np.float64]
    """(104, 22) float64: in the units of `units`."""
    imputed: NDArray[np.bool_]
    """(104, 22) bool: true where the value is an estimate."""
    names: tuple[str, ...]
    units: tuple[str, ...]
    sources: tuple[str, ...]
    """Of the 22 columns, like `names` and `units`; "1" is the unit of a pure number."""
    loo_rmse: NDArray[np.float64]
    """(22,) float64: leave-one-out error of the imputation in the unit of the column, 0 for columns without imputed
    values."""

    def column(self, name: str) -> NDArray[np.float64]:
        """A fresh copy of one column of `raw`, shape (104,).

        Raises
        ------
        ValueError
            If there is no property of that name.
        """
        if name not in self.names:
            raise ValueError(f"unknown property {name!r}: choose from {', '.join(self.names)}")
        return np.array(self.raw[:, self.names.index(name)])


@functools.cache
def element_table() -> ElementTable:
    """The table of 22 properties, read from the package on the first call and shared afterwards."""
    with (
        resources.files("fastcrystal.features").joinpath("elements.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as f,
    ):
        values, raw, imputed, loo_rmse = (f[k] for k in ("values", "raw", "imputed", "loo_rmse"))
        names, units, sources = (tuple(f[k].tolist()) for k in ("names", "units", "sources"))
    for array in (values, raw, imputed, loo_rmse):
        array.flags.writeable = False
    return ElementTable(values, raw, imputed, names, units, sources, loo_rmse)


def element_features() -> NDArray[np.float32]:
    """Element features of the model: one-hot, then the standardized properties.

    Returns
    -------
    ndarray, shape (104, 125), float32
        Row z: columns 0..102 are zero but for a one at z - 1, columns 103..124 are `ElementTable.values`.
        Row 0 (padding) is zero. A fresh array at each call.
    """
    features = np.zeros((LAST + 1, LAST + NUM_PROPERTIES), dtype=np.float32)
    features[1:, :LAST] = np.eye(LAST, dtype=np.float32)
    features[:, LAST:] = element_table().values
    return features


def atomic_number(symbol: str) -> int:
    """Atomic number 1..103 of a chemical symbol.

    Raises
    ------
    ValueError
        If `symbol` is not the symbol of an element up to lawrencium (case matters: Co is cobalt).
    """
    if symbol not in _NUMBER:
        raise ValueError(f"unknown element {symbol!r}: expected a symbol from H to Lr, as in 'Fe'")
    return _NUMBER[symbol]


def covalent_radius() -> NDArray[np.float64]:
    """Covalent radii (Cordero et al. 2008), angstrom, shape (104,), float64; zero for padding. Bk..Lr are imputed."""
    return element_table().column("covalent_radius")


def pauling_electronegativity() -> NDArray[np.float64]:
    """Electronegativities on Pauling's scale, shape (104,), float64; zero for padding.

    Eighteen are imputed (He, Ne, Ar, Kr, Rn, Pm, Eu, Tb, Yb and Am..Lr; see `element_table().imputed`).
    """
    return element_table().column("electronegativity_pauling")
