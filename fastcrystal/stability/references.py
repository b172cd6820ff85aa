"""Reference structures of a chemical system, relaxed with the same potential as the candidates, and kept.

    entries = reference_entries(["W", "Ta", "B"], "sevennet-0")
    hull = Hull(entries)

They are the elements' PBE ground states from matcalc or, where matcalc is not installed, the prototypes that the
default data set is made of, decorated with the element; for every formula of the default data set inside the system
its lowest prototypes; and, for subsystems of two or three elements with few formulas in the default set, prototypes in
simple stoichiometries. Each is relaxed from slightly displaced sites, so that it does not stop on a saddle point that
its symmetry allows. A candidate "below the hull" of these references lies below these, not below everything that
exists.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fastcrystal.features.elements import SYMBOLS
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.folder import relax_missing
from fastcrystal.relaxation.potentials import scale_of
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.stability.elemental import elemental_references, has_matcalc
from fastcrystal.stability.hull import MAX_ELEMENTS, HullEntry, entry_of

logger = logging.getLogger(__name__)

#: sources of the elements' structures
MATCALC, PROTOTYPES = "PBE ground states, from matcalc", "prototypes of the default data set (matcalc is not installed)"
#: amounts of the elements in systems that the default set does not know, by their number
SIMPLE = {
    2: ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)),
    3: ((1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 1, 3), (1, 3, 1), (3, 1, 1)),
}
#: standard deviation of the noise on the sites of a reference before it is relaxed, angstrom
DISPLACEMENT = 0.05
#: a system of which the default set has so many formulas gets no others
WELL_KNOWN = 5
#: bundled prototypes in larger cells are left out, as in the default set
MAX_SITES = 12


def reference_entries(
    elements: Iterable[str],
    calculator_name: str = "sevennet-0",
    settings: RelaxSettings | None = None,
    *,
    per_formula: int = 4,
    cache: Path | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> list[HullEntry]:
    """Entries for the hull of a chemical system: relaxed references, from the cache or made now.

    Parameters
    ----------
    elements : iterable of str
        Symbols; all subsystems are included.
    calculator_name : str
        As in `relax_candidates`.
    settings : RelaxSettings, optional
        Of the candidates; the cell of a reference is always relaxed.
    per_formula : int
        Prototypes of each formula, the lowest of the default set first.
    cache : Path, optional
        Folder; `default_cache()` where not given. One file a potential and settings; what a kill left goes on there.
    jobs : int, optional
        Processes; all cores where not given.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError
        If a symbol is no element, there are more than 8, or an element's own reference could not be relaxed (and why).
    ImportError
        If the potential is not installed.
    """
    relaxed = relaxed_references(
        elements, calculator_name, settings, per_formula=per_formula, cache=cache, jobs=jobs, progress=progress
    )
    alone = [(symbol, c) for c in relaxed if len(c.amounts) == 1 for symbol in c.amounts]
    known = {symbol for symbol, c in alone if not c.reason}
    for symbol, c in alone:
        if symbol not in known:
            raise ValueError(f"no reference for {symbol} with {calculator_name}: {c.id}: {c.reason}")
    lost = Counter(c.reason for c in relaxed if c.reason)
    if lost:
        logger.warning(
            f"{lost.total()} of {len(relaxed)} references could not be relaxed and are not on the hull, most often: "
            f"{lost.most_common(1)[0][0]}"
        )
    return [entry_of(c) for c in relaxed if not c.reason]


def relaxed_references(
    elements: Iterable[str],
    calculator_name: str = "sevennet-0",
    settings: RelaxSettings | None = None,
    *,
    per_formula: int = 4,
    cache: Path | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> list[Candidate]:
    """The crystals behind `reference_entries`, in the order of `references`; arguments and errors as there."""
    from filelock import FileLock

    how = replace(settings or RelaxSettings(), cell="full")
    wanted = references(elements, per_formula)
    folder = default_cache() if cache is None else cache
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_key(calculator_name, how)}.jsonl"
    with FileLock(path.with_suffix(".lock")):  # one run at a time relaxes into a file; others wait, and find it done
        done = relax_missing(
            path,
            [displaced(c) for c in wanted],
            calculator_name,
            how,
            is_done=lambda c: _is_final(c, how),
            jobs=jobs,
            label=f"references with {scale_of(calculator_name)}",
            progress=progress,
        )
    return [done[c.id] for c in wanted]


def displaced(candidate: Candidate) -> Candidate:
    """The candidate with every site moved by noise of `DISPLACEMENT`, drawn with a seed made of its id.

    Prototypes are symmetric, and a relaxation keeps what symmetry there is: it would stop on a saddle point, and a hull
    of saddle points lets candidates seem more stable than anything known.
    """
    seed = int.from_bytes(hashlib.sha256(candidate.id.encode()).digest()[:8], "big")
    frac, lattice = candidate.crystal.frac, candidate.crystal.lattice
    noise = np.random.default_rng(seed).normal(scale=DISPLACEMENT, size=frac.shape)
    return candidate.at(candidate.crystal._replace(frac=frac + noise @ np.linalg.inv(lattice)))


def references(elements: Iterable[str], per_formula: int = 4) -> list[Candidate]:
    """Unrelaxed reference structures of a chemical system: elements first, then formulas by their elements.

    Raises
    ------
    ValueError
        If a symbol is no element, or there are none or more than 8.
    """
    symbols = sorted(set(elements))
    for symbol in symbols:
        if symbol not in SYMBOLS[1:]:
            raise ValueError(f"no element {symbol!r}")
    if not 1 <= len(symbols) <= MAX_ELEMENTS:
        raise ValueError(f"a chemical system has 1..{MAX_ELEMENTS} elements, got {len(symbols)}")
    shipped = _shipped(symbols, per_formula)
    known: dict[frozenset[str], set[str]] = {}
    for c in shipped:
        known.setdefault(frozenset(c.amounts), set()).add(c.formula)
    if has_matcalc():
        out = [Candidate(f"{r.formula}:{r.prototype}", r.formula, r.crystal) for r in elemental_references(symbols)]
    else:
        out = [c for s in symbols if frozenset({s}) not in known for c in _decorated(s)]
    out += shipped
    for size in (2, 3):
        for system in combinations(symbols, size):
            have = known.get(frozenset(system), set())
            if len(have) < WELL_KNOWN:
                out += _simple(system, per_formula, have)
    return out


def _shipped(symbols: Sequence[str], per_formula: int) -> list[Candidate]:
    """The lowest prototypes of the default set's formulas within the system."""
    from fastcrystal.data.load import load_dataset

    data = load_dataset("prototypes")
    wanted = {SYMBOLS.index(s) for s in symbols}
    _, which = data.formulas
    elements = data.formula_elements()
    inside = [n for n, present in enumerate(elements) if present <= wanted]
    out = []
    for n in sorted(inside, key=lambda n: len(elements[n])):
        members = np.flatnonzero(which == n)
        lowest = members[np.argsort(data.energy[members], kind="stable")][:per_formula]
        out += [Candidate(data.ids[i], str(data.formula[i]), data[i]) for i in lowest.tolist()]
    return out


def _simple(system: Sequence[str], per_formula: int, have: set[str]) -> list[Candidate]:
    """Smallest prototypes of simple stoichiometries, of reduced formulas that the default set does not `have`."""
    from pymatgen.core import Composition

    known = {Composition(f).reduced_composition for f in have}
    out = []
    for amounts in SIMPLE[len(system)]:
        formula = "".join(f"{s}{n if n > 1 else ''}" for s, n in zip(system, amounts, strict=True))
        if Composition(formula).reduced_composition not in known:
            out += _decorated(formula)[:per_formula]
    return out


def _decorated(formula: str) -> list[Candidate]:
    """Bundled prototypes with the elements of a formula, smallest cells first."""
    from fastcrystal.data.datasets.prototypes import decorate

    return [Candidate(c.key, formula, c.crystal) for c in decorate(formula, _shapes())]


@functools.lru_cache(maxsize=1)
def _shapes() -> list[tuple[str, Any]]:
    """pymatgen's prototypes; finding their primitive cells takes seconds."""
    from fastcrystal.data.datasets.prototypes import library

    return library(MAX_SITES)


def elements_source() -> str:
    """Source of the elements' structures, in words."""
    return MATCALC if has_matcalc() else PROTOTYPES


def default_cache() -> Path:
    """$XDG_CACHE_HOME/fastcrystal/references, or ~/.cache/fastcrystal/references."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fastcrystal" / "references"


def _key(calculator_name: str, settings: RelaxSettings) -> str:
    """A file name for a potential and what its energies depend on; time limits, device and batches change none."""
    what = {k: v for k, v in settings.to_dict().items() if k not in ("device", "time_limit", "batch")}
    scale = scale_of(calculator_name)
    elements = [] if has_matcalc() else [PROTOTYPES]
    digest = hashlib.sha256(json.dumps([scale, what, DISPLACEMENT, *elements], sort_keys=True).encode()).hexdigest()[
        :12
    ]
    return f"{re.sub(r'[^a-zA-Z0-9]+', '-', calculator_name)}-{digest}"


def _is_final(c: Candidate, settings: RelaxSettings) -> bool:
    """Whether another try, on a faster or larger machine, would end in the same way."""
    if c.reason:  # the crystal's own fault, not the calculator's
        return c.reason.startswith(
            tuple(f"relaxation failed: {what}" for what in ("the cell ", "atoms ", "a force of "))
        )
    return bool(c.measured["converged"]) or c.measured["relax_steps"] >= settings.steps
