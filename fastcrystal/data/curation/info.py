"""`fastcrystal data info`: what a data set, a store or a view of one holds, in words or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fastcrystal.data.curation.curate import CURATION
from fastcrystal.data.curation.summary import summarize
from fastcrystal.data.load import SHIPPED, load_dataset
from fastcrystal.data.store import Store, open_store
from fastcrystal.features.elements import SYMBOLS


def describe(name_or_path: str | Path, *, as_json: bool = False, verify: bool = False) -> str:
    """Counts and ranges of a data set, a store or a view; of stores also where they are from.

    Parameters
    ----------
    name_or_path : str or Path
        As for `load_dataset`, or the folder of a store or view.
    as_json : bool
    verify : bool
        Compare the checksums of all arrays of a store, however large. (Those of an .npz are compared when it is read.)

    Raises
    ------
    ValueError
        As `load_dataset` and `open_store`.
    """
    if str(name_or_path) not in SHIPPED and Path(name_or_path).is_dir():
        values = _of_store(open_store(name_or_path, verify=verify))
        if verify:
            values["checksums"] = "match"
    else:
        values = _of_dataset(name_or_path)
    if as_json:
        return json.dumps(values, indent=2)
    if str(name_or_path) in SHIPPED:
        values["energies"] = "SevenNet-0, not DFT: see docs/default-data.md"
    return _in_words(values)


def _of_dataset(name_or_path: str | Path) -> dict[str, Any]:
    data = load_dataset(name_or_path)
    sizes = np.unique(data.formula, return_counts=True)[1]
    known = data.energy[np.isfinite(data.energy)]
    return {
        "name": data.name,
        "n_structures": len(data),
        "n_rejected": _rejected(name_or_path),
        "n_formulas": len(sizes),
        "groups_of_7_or_more": int((sizes >= 7).sum()),
        "n_space_groups": len(np.unique(data.space_group[data.space_group > 0])),
        "sites": [int(data.num_sites.min()), int(data.num_sites.max())],
        "formation_energy_ev_per_atom": _range(known),
        "elements": [SYMBOLS[z] for z in np.unique(data.species).tolist()],
    }


def _of_store(store: Store) -> dict[str, Any]:
    """Of a view: its crystals, and the sources, settings and size of the store that they are in."""
    s, manifest = summarize(store), store.manifest
    n_bytes = sum(a["bytes"] for part in manifest["parts"] for a in part["arrays"].values())
    view: dict[str, Any] = {}
    if store.index is not None:
        own = json.loads((store.path / "manifest.json").read_text(encoding="utf-8"))
        whole = (store.path / own["of"]).resolve()
        view = {"view_of": str(whole), "n_structures_in_store": int(manifest["n_crystals"])}
        if (store.path / CURATION).is_file():
            view["curation"] = json.loads((store.path / CURATION).read_text(encoding="utf-8"))
    return {
        "name": s.name,
        "n_structures": s.n_crystals,
        "n_rejected": int(manifest["n_rejected"]),
        **view,
        "n_formulas": len(s.group_sizes),
        "groups_of_7_or_more": s.polymorphs()[0],
        "n_space_groups": int((s.by_group[1:] > 0).sum()),
        "sites": list(s.sites),
        "formation_energy_ev_per_atom": _range(s.energies),
        "n_without_energy": s.n_crystals - len(s.energies),
        "elements": s.elements,
        "labels": s.by_label,
        "space_groups_declared_and_computed": s.n_declared,
        "space_groups_that_differ": s.n_disagreeing,
        "share_that_differs": None if s.disagreement is None else round(s.disagreement, 6),
        "sources": manifest["sources"],
        "settings": manifest["settings"],
        "units": manifest["units"],
        "store_version": manifest["version"],
        "bytes_per_crystal": round(n_bytes / max(int(manifest["n_crystals"]), 1), 1),
        "content_hash": store.fingerprint(),
    }


def _range(known: np.ndarray[Any, Any]) -> list[float] | None:
    return [round(float(v), 4) for v in (known.min(), known.max())] if len(known) else None


def _in_words(values: dict[str, Any]) -> str:
    """One line for each value; one for each source of a store."""
    values = dict(values)
    elements = values["elements"]
    values["elements"] = f"{len(elements)}: " + " ".join(elements)
    for key in ("sites", "formation_energy_ev_per_atom"):
        values[key] = "unknown" if values[key] is None else "{} to {}".format(*values[key])
    if "sources" in values:
        values["labels"] = ", ".join(f"{name} {count:,}" for name, count in values["labels"].items())
        values |= {key: ", ".join(f"{k} {v}" for k, v in values[key].items()) for key in ("settings", "units")}
        share = values.pop("share_that_differs")
        both, differ = (values.pop(key) for key in ("space_groups_declared_and_computed", "space_groups_that_differ"))
        values["declared_and_computed_groups_differ"] = (
            "no crystal has both" if share is None else f"{differ:,} of {both:,} ({share:.2%})"
        )
        sources = values.pop("sources")
        values |= {f"source_{i}": _source_in_words(source) for i, source in enumerate(sources, 1)}
    if "curation" in values:
        values["curation"] = "; ".join(f"{s['name']}: {s['gone']:,} gone" for s in values["curation"]["steps"])
    width = max(len(k) for k in values)
    return "\n".join(f"{k.replace('_', ' '):{width}}  {v}" for k, v in values.items())


def _source_in_words(source: dict[str, Any]) -> str:
    """Name, counts, licence, and whatever else the manifest knows."""
    known = ("name", "n_crystals", "n_rejected", "consumed", "licence", "notes", "columns", "energies")
    rest = [f"{k} {v}" for k, v in source.items() if k not in known and v not in ({}, None)]
    rest += [f"{what} from {name!r}" for what, name in source.get("columns", {}).items()]
    if given := source.get("energies"):
        rest.append(f"energies from {given['path']}, column {given['energy']!r} by {given['id']!r}")
    counts = f"{source['name']}: {source['n_crystals']:,} crystals, {source['n_rejected']:,} rejected"
    return ", ".join([counts, f"licence {source.get('licence') or 'not stated'}", *rest])


def _rejected(name_or_path: str | Path) -> int:
    """Lines of the rejects file that an import leaves beside its output."""
    path = Path(f"{name_or_path}.rejects.jsonl")
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0
