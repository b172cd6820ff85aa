"""`evaluate`: generated crystals alone, against each other, and against reference crystals beside the baselines."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.evaluation import baselines, space_groups, stability
from fastcrystal.evaluation.inputs import Given, Source, kind_of_reject, read_crystals
from fastcrystal.evaluation.match_rates import compare, partners
from fastcrystal.evaluation.novelty import equals
from fastcrystal.evaluation.pairs import Index, endless, number_of_pairs
from fastcrystal.evaluation.requested import find_table, obtained, read_requested, request_columns
from fastcrystal.evaluation.result import Evaluation
from fastcrystal.evaluation.settings import EvaluationSettings
from fastcrystal.sampling.output import SYMPRECS
from fastcrystal.structure import validity
from fastcrystal.structure.match import TOLERANCES

#: reasons of rejected crystals that the summary quotes
_EXAMPLES = 10
#: sites, padding included, of the crystals whose distances are computed at once: some 100 MB
_SITES_AT_ONCE = 2_000_000
_VERSIONS = ("fastcrystal", "pymatgen", "pymatgen-core", "spglib", "numpy", "smact")


def evaluate(
    crystals: Source,
    reference: Source | None = None,
    *,
    train: Source | None = None,
    initial: Source | None = None,
    requested: str | Path | None = None,
    settings: EvaluationSettings | None = None,
    work: Path | None = None,
) -> Evaluation:
    """Evaluate generated crystals.

    Parameters
    ----------
    crystals : str, Path, CrystalBatch, CrystalDataset, or list of pymatgen Structure
        A path is a folder, CIF, archive, table, .npz, store, or whatever else `fastcrystal.data.readers` lists; a run
        folder stands for the crystals that it generated.
    reference : as `crystals`, or the name of a shipped data set, optional
        True crystals: for the match rate, METRe, novelty and chance. A run folder stands for its test crystals.
    train : as `reference`, optional
        Crystals that the model was trained on: for retrieval and for novelty to them.
    initial : as `crystals`, optional
        Initial structures that were modified, one for each reference crystal: the match rate of leaving them as they
        are.
    requested : str or Path, optional
        Table of requests and energies by name (`fastcrystal.evaluation.requested`); crystals.csv in the folder
        `crystals` where not given.
    settings : EvaluationSettings, optional
    work : Path, optional
        Folder that keeps the relaxations, so that a killed run goes on.

    Raises
    ------
    ValueError
        If a source has no crystals, names or numbers do not agree, an option is of no use, or energies are of two
        scales.
    ImportError
        If the potential is not installed.

    Examples
    --------
    >>> result = evaluate("my_cifs/", reference="prototypes")
    >>> result.match_rate.fit, result.chance.fit
    """
    settings = EvaluationSettings() if settings is None else settings
    _check_options(reference, train, initial, settings)
    made = read_crystals(_of_run(crystals, "generated.npz"), jobs=settings.jobs)
    table = Path(requested) if requested is not None else find_table(crystals)
    asked = None if table is None else read_requested(table)
    values = request_columns(asked, made.ids, made.data.energy)
    if settings.potential.name and np.isfinite(values["e_above_hull"]).any():
        raise ValueError(
            f"{table} has energies above the hull already (e_above_hull), and a potential would give others: leave out "
            "one of the two"
        )
    true, partner = None, None
    if reference is not None:
        formulas = None if settings.pairwise else np.unique(made.data.formula).tolist()
        true = read_crystals(_of_run(reference, "test.npz"), formulas=formulas, jobs=settings.jobs)
        partner = partners(made, true) if settings.pairwise else None
    known, before = (None if s is None else read_crystals(s, jobs=settings.jobs) for s in (train, initial))
    if before is not None and true is not None and len(before) != len(true):
        raise ValueError(f"one initial structure per reference crystal is needed, got {len(before)} for {len(true)}")
    if asked is not None:  # what a table names without a file was made, too, but has no partner
        made = replace(made, rejects=[*made.rejects, *asked.unwritten])
    state = check_validity(made.data)
    fields, columns, groups = _alone(made, state, settings)
    slow = endless(made.data, _number_of_pairs(made, true, known, settings), settings)
    pairs: dict[str, dict[str, int]] = {}
    if "uniqueness" in settings.measures:
        first, pairs["uniqueness"] = equals(made.data, slow, settings)
        columns["same_as"] = [None if k < 0 else made.ids[k] for k in first.tolist()]
        columns["unique"] = [None if k < 0 else k == i for i, k in enumerate(first.tolist())]
    placed = stability.place(made, state.valid, settings, work) if settings.potential.name else None
    energies_from = "source" if np.isfinite(values["energy"]).any() else None
    if placed is not None:
        columns |= placed.columns()
        values["e_above_hull"] = placed.energies("e_above_hull")
        if energies_from is None:  # all or none: energies of two sources are not one column
            values["energy"], energies_from = placed.energies("formation_energy"), placed.scale
    columns |= {k: _numbers(v) for k, v in values.items()}
    columns["requested_group"] = [None if g is None else int(g) for g in columns["requested_group"]]
    if true is not None:
        compared, more = compare(made, true, slow, state.valid, partner, known, before, settings)
        pairs |= compared.pop("pairs")
        fields, columns = fields | compared, columns | more
    if known is not None and true is not None and "labels" in settings.measures:
        fields["self_match"] = asdict(baselines.self_match(known.data, true.data, settings))
    both = None
    if columns.get("novel") and columns["unique"]:
        both = [bool(v and u and n) for v, u, n in zip(state.valid, columns["unique"], columns["novel"], strict=True)]
    counted = ("charge_balanced", "unique", "novel", "novel_to_training")
    fields |= {f"n_{k}": _count(columns.get(k)) for k in counted}
    n_made, at = len(made.names), SYMPRECS.index(space_groups.SYMPREC)
    return Evaluation(
        n_valid_unique_novel=_count(both),
        requested={**obtained(values, groups, SYMPRECS), "energies_from": energies_from},
        space_groups=None if groups is None else space_groups.distribution(groups[:, at], true, settings),
        stability=None if placed is None else placed.summary(n_made, both),
        pairs=pairs,
        tolerances={
            **{k: dict(v) for k, v in TOLERANCES.items()},
            "min_distance": validity.MIN_DISTANCE,
            "volume_per_atom": list(validity.VOLUME_RANGE),
            "symprecs": list(SYMPRECS),
            "smact_validity": space_groups.CHARGE_RULES,
        },
        settings={
            "path": str(crystals) if isinstance(crystals, (str, Path)) else None,
            "reference": _name(reference),
            "train": _name(train),
            "table": None if table is None else str(table),
            **{k: getattr(settings, k) for k in ("pairwise", "time_limit", "seed")},
        },
        versions={"python": platform.python_version(), **{k: _version(k) for k in _VERSIONS}},
        crystals={k: [*v, *[None] * (n_made - len(v))] for k, v in columns.items()},
        pairwise=settings.pairwise,
        **fields,
    )


def _alone(
    made: Given, state: validity.Validity, settings: EvaluationSettings
) -> tuple[dict[str, Any], dict[str, list[Any]], NDArray[np.int64] | None]:
    """Fields of the result and columns of the table of one crystal at a time, and space groups (N, P)."""
    groups, no_group, charged, charge_note = None, None, None, None
    if "space_groups" in settings.measures:
        groups, no_group = space_groups.find_space_groups(made.data, SYMPRECS, settings)
    if "charge_balance" in settings.measures:
        charged, charge_note = _charges(made, settings)
    rejected = [kind_of_reject(r.reason) for r in made.rejects]
    fields = {
        "n_structures": len(made),
        "n_rejected": len(made.rejects),
        "n_formulas": len(np.unique(made.data.formula)),
        "rejected": dict(Counter(rejected)),
        "rejected_examples": [f"{r.id}: {r.reason}" for r in made.rejects[:_EXAMPLES]],
        "validity": state.counts(),
        "charge_balance_note": charge_note,
        "n_without_space_group": no_group,
    }
    columns = {
        "name": made.names,
        "formula": made.data.formula.tolist(),
        "num_sites": made.data.num_sites.tolist(),
        "state": [*(validity.REASONS[r] for r in state.reason), *rejected],
        "rejected": [*[None] * len(made), *(r.reason for r in made.rejects)],
        "volume_per_atom": _numbers(state.volume_per_atom),
        "min_distance": _numbers(state.min_distance),
        "charge_balanced": charged or [],
        **{f"group_{p:g}": [] if groups is None else _known(groups[:, k]) for k, p in enumerate(SYMPRECS)},
        "same_as": [],
        "unique": [],
    }
    return fields, columns, groups


def _number_of_pairs(made: Given, true: Given | None, known: Given | None, settings: EvaluationSettings) -> Index:
    """Pairs that each generated crystal is in, with any other of its formula, shape (N,)."""
    measures = settings.measures
    one_by_one = settings.pairwise and {"metre", "novelty"}.isdisjoint(measures)
    others = [] if true is None or one_by_one else [true]
    others += [known] if known is not None and "novelty" in measures else []
    formulas = [given.data.formula for given in others]
    return number_of_pairs(made.data.formula, formulas, itself="uniqueness" in measures)


def check_validity(crystals: CrystalDataset) -> validity.Validity:
    """`fastcrystal.structure.validity.check` of all crystals, in padded batches that fit into memory."""
    step = max(1, _SITES_AT_ONCE // crystals.max_sites)
    parts = [np.arange(k, min(k + step, len(crystals))) for k in range(0, max(len(crystals), 1), step)]
    done = [validity.check(crystals.batch(index)) for index in parts]
    columns = zip(*((v.reason, v.min_distance, v.volume_per_atom) for v in done), strict=True)
    return validity.Validity(*(np.concatenate(column) for column in columns))


def _check_options(
    reference: Source | None, train: Source | None, initial: Source | None, settings: EvaluationSettings
) -> None:
    """Raise ValueError for what is of no use without a reference or a training set."""
    if reference is None:
        no_use = {
            "--pairwise compares with reference crystals": settings.pairwise,
            "--train is for the retrieval baseline of a reference": train is not None,
            "initial structures are compared with reference crystals": initial is not None,
        }
        for why, given in no_use.items():
            if given:
                raise ValueError(f"{why}: give --reference STORE_OR_FOLDER")
    if "labels" in settings.measures and train is None:
        raise ValueError('the measure "labels" is of a training set: give train (--train STORE_OR_NPZ)')


def _of_run(source: Source, name: str) -> Source:
    """The data set that a run folder holds under this name; any other source as it is."""
    if isinstance(source, (str, Path)) and (Path(source) / "config.json").is_file():
        return Path(source) / name
    return source


def _charges(made: Given, settings: EvaluationSettings) -> tuple[list[bool | None] | None, str | None]:
    """Charge balance of each crystal's formula, and why it is not known of some."""
    formulas = np.unique(made.data.formula).tolist()
    balanced = space_groups.charge_balance(formulas, settings)
    if balanced is None:
        return None, f"not checked, smact is not installed: {space_groups.EXTRA}"
    lost = sum(v is None for v in balanced.values())
    note = f"smact has no answer for {lost} of {len(formulas)} formulas" if lost else None
    return [balanced[f] for f in made.data.formula.tolist()], note


def _count(which: list[Any] | None) -> int | None:
    return sum(bool(w) for w in which) if which else None


def _known(groups: NDArray[np.int64]) -> list[int | None]:
    return [g or None for g in groups.tolist()]


def _numbers(values: NDArray[np.floating]) -> list[float | None]:
    return [None if np.isnan(v) else v for v in values.tolist()]


def _name(source: Source | None) -> str | None:
    if source is None or isinstance(source, (str, Path)):
        return None if source is None else str(source)
    return source.name if isinstance(source, CrystalDataset) else type(source).__name__


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
