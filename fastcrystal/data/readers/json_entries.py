"""pymatgen's JSON: a list of structures or of computed entries, or one of them a line.

    [{"entry_id": "mp-1", "structure": {"lattice": ..., "sites": [...]}, "data": {"formation_energy_per_atom": -1.2}},
     {"@module": "pymatgen.core.structure", "lattice": ..., "sites": [...]}]

Only lattice, species, occupancies and coordinates are taken: monty's decoder would import whatever modules a file
names, so it is never called, and nothing that could call it is handed on. Objects are read one at a time, whatever the
size of the file.
"""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcrystal.data.readers.columns import Columns, Wanted, find_columns
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.text import DAMAGED, MAX_FILE_BYTES, one_line, open_unpacked
from fastcrystal.symmetry.canonical import MAX_INPUT_SITES

_CHUNK = 1 << 16


class JsonEntries:
    """A JSON or JSONL file (packed or not): its keys, looked at once, and its objects.

    Parameters
    ----------
    path : Path
    wanted : Wanted
        Keys of an object, or of its "data", by name.

    Raises
    ------
    ValueError
        If the first object lacks a key that was asked for.
    """

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.path = path
        first = next(iter(_objects(path)), None)
        names = list(_flat(first)) if isinstance(first, dict) else []
        self.columns: Columns = find_columns(path.name, names, wanted)

    def entries(self) -> Iterator[Entry | Reject]:
        """Every object; a last Reject where the file breaks off."""
        for position, item in enumerate(_objects(self.path), start=1):
            yield item if isinstance(item, Reject) else self._entry(item, position)

    def _entry(self, item: Any, position: int) -> Entry | Reject:
        found, structure = self.columns.values(_flat(item), str(position)), _structure_of(item)
        id = found.id if isinstance(found, Reject) else found[0]
        if structure is None:
            return Reject(id, "object has no structure: lattice and sites, or structure with these, are expected")
        if isinstance(found, Reject):
            return found
        _, energy, group = found
        if self.columns.energy == "energy" and "correction" in item:  # a computed entry's energy is that of its cell
            energy /= max(len(structure["sites"]), 1)
        try:
            text = _slim(structure)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            return Reject(id, f"structure has no {error}" if isinstance(error, KeyError) else one_line(error))
        return Entry(id, f"{self.path.name}:{position}", "json", text, energy, group)


def _flat(item: Any) -> dict[str, Any]:
    """Keys of an object and of its "data" that hold words or numbers; the object's own first.

    The Materials Project's summary has the space group under "symmetry", as {"number": 225}.
    """
    if not isinstance(item, dict):
        return {}
    inner = item.get("data") if isinstance(item.get("data"), dict) else {}
    symmetry = item.get("symmetry")
    named = {"spacegroup.number": symmetry.get("number")} if isinstance(symmetry, dict) else {}
    pairs = itertools.chain(named.items(), inner.items() if inner else (), item.items())
    return {k: v for k, v in pairs if isinstance(v, str | int | float) and not k.startswith("@")}


def _structure_of(item: Any) -> dict[str, Any] | None:
    """The dictionary of a structure in an object: itself, or under "structure" or "entry"."""
    for _ in range(3):
        if not isinstance(item, dict):
            return None
        if isinstance(item.get("sites"), list) and isinstance(item.get("lattice"), dict):
            return item
        item = item.get("structure", item.get("entry"))
    return None


def _slim(structure: dict[str, Any]) -> str:
    """The parts of a structure that make a crystal, as JSON."""
    sites = structure["sites"]
    if not 1 <= len(sites) <= MAX_INPUT_SITES:
        raise ValueError(f"cell must have 1..{MAX_INPUT_SITES} sites, got {len(sites)}")
    slim = [
        {
            "species": [{"element": str(s["element"]), "occu": float(s["occu"])} for s in site["species"]],
            "abc": [float(x) for x in site["abc"]],
        }
        for site in sites
    ]
    matrix = [[float(x) for x in row] for row in structure["lattice"]["matrix"]]
    return json.dumps({"lattice": {"matrix": matrix}, "sites": slim})


def _objects(path: Path) -> Iterator[Any]:
    """The values of a JSON list, or those that follow one another (JSONL); a last Reject where the file is damaged."""
    done, buffer, listed = 0, "", False
    decoder, text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")("replace")
    try:
        with open_unpacked(path) as stream:
            more, needed = True, 1
            while True:
                while more and len(buffer) < needed:
                    data = stream.read(_CHUNK)
                    more = bool(data)
                    buffer += text.decode(data, final=not more)
                buffer = buffer.lstrip(" \t\r\n,")
                if done == 0 and not listed and buffer.startswith("["):
                    buffer, listed = buffer[1:], True
                    continue
                if buffer.startswith("]") or (not buffer and not more):
                    return
                if not buffer:
                    continue
                try:
                    value, end = decoder.raw_decode(buffer)
                    # what ends with the buffer may go on behind it
                    whole = end < len(buffer) or not more
                except RecursionError:
                    raise ValueError("nested too deeply") from None
                except ValueError:
                    whole = False
                    if not more:
                        raise
                if not whole:
                    needed = 2 * len(buffer)
                    if needed > 2 * MAX_FILE_BYTES:
                        raise ValueError(f"an object is larger than {MAX_FILE_BYTES // 1_000_000} MB, or is none")
                    continue
                done, buffer, needed = done + 1, buffer[end:], 1
                yield value
    except (*DAMAGED, ValueError) as error:
        yield Reject(path.name, f"damaged after object {done}: {one_line(error)}")
