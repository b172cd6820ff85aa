"""The element table: shape, standardization, physics, provenance flags, and an import that stays light."""

import subprocess
import sys

import numpy as np
import pytest

from fastcrystal.crystal import MAX_ATOMIC_NUMBER
from fastcrystal.features import elements
from fastcrystal.features.elements import SYMBOLS, atomic_number, element_features, element_table


def test_shapes_and_dtypes() -> None:
    table = element_table()
    assert elements.LAST == MAX_ATOMIC_NUMBER == len(SYMBOLS) - 1
    for array, dtype in ((table.values, np.float32), (table.raw, np.float64), (table.imputed, np.bool_)):
        assert array.shape == (104, 22)
        assert array.dtype == dtype
        assert not array.flags.writeable
        assert not array[0].any()
    assert len(set(table.names)) == len(table.units) == len(table.sources) == elements.NUM_PROPERTIES == 22
    assert element_table() is table


def test_no_nan_and_no_sentinel() -> None:
    table = element_table()
    assert np.isfinite(table.values).all()
    assert np.isfinite(table.raw).all()
    # a sentinel such as -1 or 9999 would be an outlier; Fm at 100 K and He at 25 eV are the real extremes
    assert np.abs(table.values).max() < 6
    assert (table.raw >= 0).all()


def test_standardized_over_the_elements() -> None:
    values = element_table().values[1:].astype(np.float64)
    np.testing.assert_allclose(values.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(values.std(0), 1, atol=1e-6)


def test_values_are_the_raw_ones_rescaled() -> None:
    table = element_table()
    raw = table.raw[1:]
    np.testing.assert_allclose(table.values[1:], (raw - raw.mean(0)) / raw.std(0), atol=1e-5)


def test_imputed_values_are_few_flagged_and_inside_the_known_range() -> None:
    table = element_table()
    count = table.imputed.sum(0)
    assert table.imputed.sum() == 121
    assert count.max() <= 32
    assert ((count > 0) == (table.loo_rmse > 0)).all()
    for i in np.flatnonzero(count):
        known = table.raw[1:, i][~table.imputed[1:, i]]
        guess = table.raw[table.imputed[:, i], i]
        assert known.min() <= guess.min()
        assert guess.max() <= known.max()
        assert table.loo_rmse[i] < known.std()  # better than the mean
    # what a crystal is mostly made of is measured
    assert not table.imputed[1:31][table.raw[1:31, table.names.index("group")] < 18].any()


@pytest.mark.parametrize(
    ("symbol", "name", "value", "tolerance"),
    [
        ("Fe", "period", 4, 0),
        ("Fe", "group", 8, 0),
        ("Fe", "d_electrons", 6, 0),
        ("Fe", "unpaired_electrons", 4, 0),
        ("Ce", "group", 3, 0),
        ("U", "block", 3, 0),
        ("U", "f_electrons", 3, 0),
        ("O", "atomic_weight", 15.999, 0.001),
        ("C", "covalent_radius", 0.73, 0.05),
        ("Cs", "covalent_radius", 2.44, 0.05),
        ("Na", "vdw_radius", 2.5, 0.1),
        ("O", "electronegativity_pauling", 3.44, 0.01),
        ("H", "ionisation_energy", 13.598, 0.001),
        ("Cl", "electron_affinity", 3.61, 0.01),
        ("He", "electron_affinity", 0, 0),
        ("H", "dipole_polarisability", 4.5, 0.02),
        ("W", "melting_point", 3687, 10),
        ("Sn", "melting_point", 505.1, 0.1),
        ("Hg", "boiling_point", 629.8, 0.1),
        ("Au", "density", 19.3, 0.1),
        ("C", "atomisation_enthalpy", 716.9, 0.1),
        ("Ar", "atomisation_enthalpy", 0, 0),
    ],
)
def test_raw_values_are_in_their_units(symbol: str, name: str, value: float, tolerance: float) -> None:
    assert element_table().column(name)[atomic_number(symbol)] == pytest.approx(value, abs=tolerance)


def test_physics() -> None:
    table = element_table()

    def argmax(name: str) -> str:
        column = np.where(table.imputed[:, table.names.index(name)], -1, table.column(name))
        return SYMBOLS[int(column.argmax())]

    assert argmax("electronegativity_pauling") == "F"
    assert argmax("ionisation_energy") == "He"
    assert argmax("melting_point") == "C"
    assert argmax("dipole_polarisability") == "Cs"
    assert argmax("electron_affinity") == "Cl"
    radius = elements.covalent_radius()
    for group in ("Li Na K Rb Cs", "F Cl Br I", "O S Se Te"):  # radii grow down a group
        assert (np.diff(radius[[atomic_number(s) for s in group.split()]]) > 0).all()
    # electrons outside the core: noble gases are full, and the table is consistent with Z
    valence = table.raw[:, [table.names.index(f"{k}_electrons") for k in "spdf"]].sum(1)
    cores = np.array([0, 2, 10, 18, 36, 54, 86])
    z = np.arange(1, 104)
    np.testing.assert_array_equal(valence[1:], z - cores[np.searchsorted(cores, z) - 1])


def test_named_columns() -> None:
    for column, name in (
        (elements.covalent_radius(), "covalent_radius"),
        (elements.pauling_electronegativity(), "electronegativity_pauling"),
    ):
        assert column.shape == (104,)
        np.testing.assert_array_equal(column, element_table().raw[:, element_table().names.index(name)])
        column[:] = 0  # a copy: the table is not touched
    assert elements.covalent_radius()[1:].min() > 0.2


def test_features() -> None:
    features = element_features()
    assert features.shape == (104, 125)
    assert features.dtype == np.float32
    assert not features[0].any()
    np.testing.assert_array_equal(features[1:, :103], np.eye(103))
    np.testing.assert_array_equal(features[:, 103:], element_table().values)
    features[:] = 7
    assert element_features()[1, 0] == 1


def test_symbols() -> None:
    assert SYMBOLS[0] == ""
    assert [SYMBOLS[z] for z in (1, 8, 26, 57, 80, 92, 103)] == ["H", "O", "Fe", "La", "Hg", "U", "Lr"]
    for z in range(1, 104):
        assert atomic_number(SYMBOLS[z]) == z


def test_symbols_match_the_shipped_table() -> None:
    from importlib import resources

    with np.load(str(resources.files("fastcrystal.features") / "elements.npz"), allow_pickle=False) as f:
        assert tuple(f["symbols"].tolist()) == SYMBOLS


@pytest.mark.parametrize("symbol", ["Xx", "", "fe", "CO"])
def test_unknown_symbol(symbol: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown element '{symbol}': expected a symbol from H to Lr"):
        atomic_number(symbol)


def test_unknown_property() -> None:
    with pytest.raises(ValueError, match=r"^unknown property 'color': choose from period, group, "):
        element_table().column("color")


@pytest.mark.parametrize("module", ["elements", "space_groups"])
def test_import_is_light(module: str) -> None:
    heavy = {"torch", "numba", "pymatgen", "mendeleev", "spglib", "scipy", "pandas", "triton"}
    code = f"import fastcrystal.features.{module}, sys; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
