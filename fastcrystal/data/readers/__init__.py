"""Readers: whatever holds crystals, one structure at a time, each with a reason where it is of no use.

    source = open_source("mp_20.feather")          # what it is and which columns are read: source.kind, source.columns
    for item in source:                            # Entry or Reject, in a fixed order, with unique ids
    for item in read_structures("structures.tar.gz", "energies.csv"):   # the same as pymatgen structures

| kind      | what                                                                             | module           |
|-----------|----------------------------------------------------------------------------------|------------------|
| file      | a CIF or POSCAR (.vasp, POSCAR*, CONTCAR*)                                       | `files`          |
| folder    | these, searched in depth                                                         | `files`          |
| tar, zip  | these in an archive, packed in any way                                           | `files`          |
| table     | .csv (.csv.gz), .parquet, .feather with a column "cif"                           | `tables`         |
| aflow     | the same with AFLOW's columns: the csv of the paper's code                       | `aflow_columns`  |
| extxyz    | .extxyz, .xyz (.gz)                                                              | `extxyz`         |
| ase       | .db: an ASE database (SQLite)                                                    | `ase_database`   |
| json      | .json, .jsonl (.gz): pymatgen structures or computed entries                     | `json_entries`   |
| npz       | a data set of `fastcrystal.data.dataset`                                         | `packed`         |
| store     | a store of `fastcrystal.data.store`                                              | `packed`         |
| aflux     | a folder of pages of AFLOW's API (`pages.json` says so)                          | `..databases`    |
| optimade  | a folder of pages of an OPTIMADE database                                        | `..databases`    |

A bad structure never stops the rest: it is a `Reject` with one line that says why. Nothing is unpickled, evaluated or
fetched, and no name in an archive is ever written to disk. What a source yields is not parsed yet:
`fastcrystal.data.readers.parsing` does that, in other processes.
"""

from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.source import KEYED, Record, Source, open_source, read_structures
from fastcrystal.data.readers.structure_text import parse_structure

__all__ = ["KEYED", "Entry", "Record", "Reject", "Source", "open_source", "parse_structure", "read_structures"]
