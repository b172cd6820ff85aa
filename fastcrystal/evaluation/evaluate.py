"""`evaluate_files`: crystals from any model, judged alone and against reference crystals."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.evaluation import rates, requested, single, stability
from fastcrystal.evaluation.against import KEYS, compare_all, judge_against, novelty
from fastcrystal.evaluation.crystals import Crystals, kind_of_reject, read_crystals
from fastcrystal.evaluation.pairs import Index, Limits, endless, match, representatives, same_formula
from fastcrystal.evaluation.report import FilesEvaluation
from fastcrystal.evaluation.worker import CHARGE_RULES
from fastcrystal.sampling.request import SYMPRECS
from fastcrystal.structure import validity
from fastcrystal.structure.match import TOLERANCES

#: angstrom; the tolerance of the distribution of space groups, and of data sets (`fastcrystal.structure.canonical`)
SYMPREC = 0.1
#: reasons of rejected crystals that the summary quotes
_EXAMPLES = 10
_VERSIONS = ("fastcrystal", "pymatgen", "pymatgen-core", "spglib", "numpy", "smact")


def evaluate_files(
    path: str | Path,
    *,
    reference: str | Path | None = None,
    pairwise: bool = False,
    train: str | Path | None = None,
    table: str | Path | None = None,
    potential: stability.Potential | None = None,
    work: Path | None = None,
    jobs: int | None = None,
    time_limit: float = 10.0,
    seed: int = 0,
    progress: bool = True,
) -> FilesEvaluation:
    """Judge the crystals in a folder or file.

    Parameters
    ----------
    path : str or Path
        Generated crystals: anything that `fastcrystal.data.readers` lists.
    reference : str or Path, optional
        True crystals, of any such kind or a data set's name: for the match rate, METRe, novelty and chance.
    pairwise : bool
        The match rate compares crystals of one name; without it, it is METRe (`fastcrystal.evaluation.rates`).
    train : str or Path, optional
        Data set or store that the model was trained on: for retrieval and for novelty to it.
    table : str or Path, optional
        Requests and energies by name (`fastcrystal.evaluation.requested`); crystals.csv in the folder `path` where
        not given.
    potential : Potential, optional
        Relaxes the valid crystals and places them on the hull: energies above the hull.
    work : Path, optional
        Folder that keeps the relaxations, so that a killed run goes on.
    jobs : int, optional
        Worker processes; every core where not given.
    time_limit : float
        Seconds for a pair, a crystal or a formula; without an answer by then a pair is no match.
    seed : int
        Of the chance crystals.
    progress : bool
        Show progress bars.

    Raises
    ------
    ValueError
        If a path has no crystals, names do not agree, an option is out of range or of no use, or energies are of two
        scales.
    ImportError
        If the potential is not installed.
    """
    if reference is None and pairwise:
        raise ValueError("--pairwise compares with reference crystals: give --reference STORE_OR_FOLDER")
    if reference is None and train is not None:
        raise ValueError("--train is for the retrieval baseline of a reference: give --reference STORE_OR_FOLDER")
    limits = Limits(jobs, time_limit, progress)
    made = read_crystals(path, jobs=jobs)
    found = Path(table) if table is not None else requested.find_table(Path(path))
    asked = None if found is None else requested.read_requested(found)
    readable = made  # what a table names without a file has no partner to be compared with
    if asked is not None:
        made = replace(made, rejects=[*made.rejects, *asked.unwritten])
    values = requested.columns(asked, made.ids, made.energy)
    if potential is not None and np.isfinite(values["e_above_hull"]).any():
        raise ValueError(
            f"{found} has energies above the hull already (e_above_hull), and a potential would give others: leave out "
            "one of the two"
        )
    true, partner = None, None
    if reference is not None:
        true = read_crystals(reference, formulas=None if pairwise else np.unique(made.formula).tolist(), jobs=jobs)
        partner = rates.by_name(readable, true) if pairwise else None
    trained_on = None if train is None else read_crystals(train, formulas=np.unique(made.formula).tolist(), jobs=jobs)
    n_made = len(made) + len(made.rejects)
    state = single.check(made)
    groups, no_group = single.space_groups(made, SYMPRECS, limits)
    charged, charges = _charges(made, limits)
    first, pairs = _groups_of_equals(made, [c for c in (true, trained_on) if c is not None], limits)
    slow = first < 0
    unique = first == np.arange(len(made))
    placed = None if potential is None else stability.place(made, state.valid, potential, limits, work)
    energies_from = "source" if np.isfinite(values["energy"]).any() else None
    if placed is not None:
        values["e_above_hull"] = placed.e_above_hull
        if energies_from is None:  # all or none: energies of two sources are not one column
            values["energy"], energies_from = placed.formation_energy, placed.scale
    columns: dict[str, list[Any]] = {
        "name": [*made.ids, *(r.id for r in made.rejects)],
        "formula": made.formula.tolist(),
        "num_sites": made.num_sites.tolist(),
        "state": [*(validity.REASONS[r] for r in state.reason), *(kind_of_reject(r.reason) for r in made.rejects)],
        "rejected": [*[None] * len(made), *(r.reason for r in made.rejects)],
        "volume_per_atom": _numbers(state.volume_per_atom),
        "min_distance": _numbers(state.min_distance),
        "charge_balanced": charged,
        **{f"group_{p:g}": [g or None for g in groups[:, k].tolist()] for k, p in enumerate(SYMPRECS)},
        **{k: _numbers(v) for k, v in values.items()},
        "requested_group": [None if np.isnan(g) else int(g) for g in values["requested_group"].tolist()],
        "same_as": [None if k < 0 else made.ids[k] for k in first.tolist()],
        "unique": [None if s else u for u, s in zip(unique.tolist(), slow.tolist(), strict=True)],
    }
    summary: dict[str, Any] = {
        "n_structures": len(made),
        "n_rejected": len(made.rejects),
        "rejected": dict(Counter(kind_of_reject(r.reason) for r in made.rejects)),
        "rejected_examples": [f"{r.id}: {r.reason}" for r in made.rejects[:_EXAMPLES]],
        "n_formulas": len(np.unique(made.formula)),
        **_share("valid", state.valid, n_made),
        "validity": state.counts(),
        **charges,
        **_share("unique", unique, len(made)),
        "requested": {**requested.obtained(values, groups, SYMPRECS), "energies_from": energies_from},
        "n_without_space_group": no_group,
    }
    against, novel, known = None, None, None
    if true is not None:
        against = judge_against(made, true, slow, partner, None if train is None else str(train), seed, limits)
        novel = columns["novel"] = against.novel()
        columns |= against.columns()
        pairs |= {"reference": against.rates["metre"].counts}
        pairs |= {k: against.rates[k].counts for k in ("chance", "retrieval") if k in against.rates}
    if trained_on is not None:
        cross = compare_all(made, trained_on, slow, limits)
        known = columns["novel_to_training"] = novelty(cross, len(made))
        pairs |= {"training set": cross.best(trained_on).counts}
    summary |= dict.fromkeys(KEYS) if against is None else against.summary(n_made)
    summary |= _share("novel", novel, len(made)) | _share("novel_to_training", known, len(made))
    both = (
        None if novel is None else [v and u and n is True for v, u, n in zip(state.valid, unique, novel, strict=True)]
    )
    summary |= {
        **_share("valid_unique_novel", both, n_made),
        "stability": None if placed is None else placed.summary(n_made, both),
        "space_groups": _distribution(groups, true, limits),
        "pairs": pairs,
        "tolerances": {
            **{k: dict(v) for k, v in TOLERANCES.items()},
            "min_distance": validity.MIN_DISTANCE,
            "volume_per_atom": list(validity.VOLUME_RANGE),
            "symprecs": list(SYMPRECS),
            "smact_validity": CHARGE_RULES,
        },
        "settings": {
            "path": str(path),
            "reference": None if reference is None else str(reference),
            "train": None if train is None else str(train),
            "table": None if found is None else str(found),
            "pairwise": pairwise,
            "time_limit": time_limit,
            "seed": seed,
        },
        "versions": {"python": platform.python_version(), **{k: _version(k) for k in _VERSIONS}},
    }
    if placed is not None:
        columns |= placed.columns()
    filled = {k: [*v, *[None] * (n_made - len(v))] for k, v in columns.items()}
    return FilesEvaluation(summary, filled, {} if against is None else against.reference_columns())


def _groups_of_equals(
    made: Crystals, others: list[Crystals], limits: Limits
) -> tuple[Index, dict[str, dict[str, int]]]:
    """`representatives` of the crystals, (N,), and how the pairs ended.

    -1 for a crystal that cannot be compared, whose pairs with `others` count too.
    """
    kind = np.unique(made.formula, return_inverse=True)[1].reshape(-1)
    n_pairs = np.bincount(kind)[kind] - 1
    for other in others:
        n_pairs = n_pairs + np.bincount(same_formula(made.formula, other.formula)[0], minlength=len(made))
    slow = endless(made, n_pairs, limits)
    at, counts = np.flatnonzero(~slow), Counter({"given up": int(slow.sum())})

    def same(first: Index, second: Index) -> NDArray[np.bool_]:
        result = match(made, at[first], made, at[second], limits)
        counts.update(result.counts())
        return result.fit

    out = np.full(len(made), -1, dtype=np.int64)
    out[at] = at[representatives(kind[at], same)]
    return out, {"uniqueness": dict(counts)}


def _charges(made: Crystals, limits: Limits) -> tuple[list[bool | None], dict[str, Any]]:
    """Charge balance of each crystal's formula, and its part of the summary."""
    formulas = np.unique(made.formula).tolist()
    balanced = single.charge_balance(formulas, limits)
    if balanced is None:
        note = f"not checked, smact is not installed: {single.EXTRA}"
        nothing = {"n_charge_balanced": None, "charge_balanced_share": None, "charge_balance_note": note}
        return [None] * len(made), nothing
    column = [balanced[f] for f in made.formula.tolist()]
    lost = sum(v is None for v in balanced.values())
    unanswered = f"smact has no answer for {lost} of {len(formulas)} formulas" if lost else None
    return column, {**_share("charge_balanced", column, len(made)), "charge_balance_note": unanswered}


def _distribution(groups: NDArray[np.int64], true: Crystals | None, limits: Limits) -> dict[str, Any]:
    """Space groups of either side by number, "0": none found; and how far the two distributions are apart."""
    found = f"spglib, symprec {SYMPREC:g}"
    ours = Counter(groups[:, SYMPRECS.index(SYMPREC)].tolist())
    theirs: Counter[int] = Counter()
    if true is not None and true.stored_groups is not None:
        theirs.update(true.stored_groups)
    elif true is not None:
        theirs.update(single.space_groups(true, (SYMPREC,), limits, "space groups (reference)")[0][:, 0].tolist())
    stored = true is not None and true.stored_groups is not None
    n, m = sum(ours.values()), sum(theirs.values())
    apart = sum(abs(ours[g] / n - theirs[g] / m) for g in ours | theirs) / 2 if n and m else None
    return {
        "symprec": SYMPREC,
        "from": {"generated": found, "reference": "as stored in the data set" if stored else found},
        "generated": {str(g): k for g, k in sorted(ours.items())},
        "reference": {str(g): k for g, k in sorted(theirs.items())},
        "total_variation": apart,
    }


def _share(name: str, which: Iterable[bool | None] | None, whole: int) -> dict[str, Any]:
    """n_<name> and <name>_share of those that are True; None where there is nothing to count."""
    if which is None:
        return {f"n_{name}": None, f"{name}_share": None}
    n = sum(bool(w) for w in which)
    return {f"n_{name}": n, f"{name}_share": rates.share(n, whole)}


def _numbers(values: NDArray[np.floating]) -> list[float | None]:
    return [None if np.isnan(v) else v for v in values.tolist()]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
