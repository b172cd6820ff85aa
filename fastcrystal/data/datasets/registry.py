"""Data sets that are known by name: where they are, under which licence, whom to cite. Nothing is downloaded here.

`fastcrystal.data.datasets.fetch` gets them. The addresses and facts are from the repositories' own pages; none of the
files
could be downloaded where this was written, so no checksum is known yet (`sha256` is None, "not verified"), and the
addresses are untested.
"""

from __future__ import annotations

from dataclasses import dataclass

_CDVAE = "https://raw.githubusercontent.com/txie-93/cdvae/main/data"
_DIFFCSP = "https://raw.githubusercontent.com/jiaor17/DiffCSP/main/data"
#: the commit that holds the files
_NREL = "https://raw.githubusercontent.com/prashungorai/combined-gnn/3de03d190c7c84354c3fc8cad39d7597764a45df"
_XIE = "T. Xie et al., Crystal Diffusion Variational Autoencoder for Periodic Material Generation, arXiv:2110.06197"
_MP = "A. Jain et al., APL Materials 1, 011002 (2013)"
_SPLIT = ("train.csv", "val.csv", "test.csv")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set.

    Attributes
    ----------
    name : str
        What it is called on disk.
    url : str
    sha256 : str or None
        Of its bytes, in hexadecimal; None: not known, the file cannot be verified.
    """

    name: str
    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class NamedDataset:
    """A public data set.

    Attributes
    ----------
    name : str
    what : str
        In a line.
    page : str
        For people.
    files : tuple of RemoteFile
    structures : tuple of str
        Files to import, in this order.
    licence : str
    citation : tuple of str
    energies : str
        What its energies are.
    options : tuple of str
        What `fastcrystal data import` needs besides the files; a word with a "/" is a file of this data set.
    """

    name: str
    what: str
    page: str
    files: tuple[RemoteFile, ...]
    structures: tuple[str, ...]
    licence: str
    citation: tuple[str, ...]
    energies: str
    options: tuple[str, ...] = ()


def _split_files(base: str) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(name, f"{base}/{name}") for name in _SPLIT)


_ALL = (
    NamedDataset(
        "perov_5",
        "18,928 cubic perovskites of 56 elements, 5 sites in a cell",
        "https://github.com/txie-93/cdvae/tree/main/data/perov_5",
        _split_files(f"{_CDVAE}/perov_5"),
        _SPLIT,
        "not stated for the data; the repository is under MIT",
        (
            "I. E. Castelli et al., Energy & Environmental Science 5, 9034 (2012)",
            "I. E. Castelli et al., Energy & Environmental Science 5, 5814 (2012)",
            _XIE,
        ),
        "heat_ref is the heat of formation, the property that CDVAE learns",
        ("--set", "energy_column=heat_ref"),
    ),
    NamedDataset(
        "carbon_24",
        "10,153 structures of carbon at 10 GPa, 6 to 24 sites in a cell",
        "https://github.com/txie-93/cdvae/tree/main/data/carbon_24",
        _split_files(f"{_CDVAE}/carbon_24"),
        _SPLIT,
        "CC BY 4.0",
        (
            "C. J. Pickard, AIRSS data for carbon at 10GPa and the C+N+H+O system at 1GPa, Materials Cloud (2020), "
            "10.24435/materialscloud:2020.0026/v1",
            _XIE,
        ),
        "energies per atom at 10 GPa, not formation energies: do not mix them with another set's",
        ("--set", "energy_column=energy_per_atom"),
    ),
    NamedDataset(
        "mp_20",
        "45,231 inorganic crystals of 89 elements from the Materials Project, up to 20 sites in a cell",
        "https://github.com/txie-93/cdvae/tree/main/data/mp_20",
        _split_files(f"{_CDVAE}/mp_20"),
        _SPLIT,
        "CC BY 4.0",
        (_MP, _XIE),
        "formation energies, eV/atom",
    ),
    NamedDataset(
        "mpts_52",
        "crystals of the Materials Project, up to 52 sites in a cell, split by the year of publication",
        "https://github.com/jiaor17/DiffCSP/tree/main/data/mpts_52",
        _split_files(f"{_DIFFCSP}/mpts_52"),
        _SPLIT,
        "CC BY 4.0",
        (
            _MP,
            "S. Baird, mp-time-split, https://github.com/sparks-baird/mp-time-split",
            "R. Jiao et al., Crystal Structure Prediction by Joint Equivariant Diffusion, arXiv:2309.04475",
        ),
        "formation energies, eV/atom",
    ),
    NamedDataset(
        "nrel_hypothetical",
        "some 11,000 relaxed decorations of prototypes, many polymorphs of each formula",
        "https://github.com/prashungorai/combined-gnn",
        tuple(
            RemoteFile(name, f"{_NREL}/{name}")
            for name in ("relaxed_hypothetical_structures.tar.gz", "hypothetical_structure_energies.csv")
        ),
        ("relaxed_hypothetical_structures.tar.gz",),
        "MIT",
        ("S. Pandey, J. Qu, V. Stevanovic, P. St. John, P. Gorai, Patterns 2, 100361 (2021)",),
        "total energies, eV/atom: they rank the polymorphs of a formula, and are not formation energies",
        ("--energies", "/hypothetical_structure_energies.csv"),
    ),
)
DATASETS: dict[str, NamedDataset] = {entry.name: entry for entry in _ALL}


def named_dataset(name: str) -> NamedDataset:
    """The entry of a data set.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}: choose from {', '.join(DATASETS)}")
    return DATASETS[name]
