"""discover: formulas in, ranked candidates out (paper, section 7), stage by stage, each in a folder of its own.

    RUN/request.json        settings, versions, the model
    RUN/0_references/       the hull of what is known, on the potential's scale, and E_hull of every formula
    RUN/1_conditions/       what the model is asked for
    RUN/2_generated/        its crystals
    RUN/3_filtered/         valid ones, one of each
    RUN/4_relaxed/          relaxed, with energies
    RUN/5_hull/             with distances from the hull
    RUN/6_ranking/          ranking.csv, table.md, CIFs, VASP inputs of the best
    RUN/report.html         one page to look at

Every stage goes on where a kill left it and is skipped when it is done. A candidate that is dropped stays in the files,
with its reason.
"""

from __future__ import annotations

import json
import logging
import platform
from collections import defaultdict
from datetime import datetime, timezone
from itertools import zip_longest
from pathlib import Path
from typing import Any

import fastcrystal
from fastcrystal.discovery import ranking
from fastcrystal.discovery.conditions import Condition, plan, read_conditions, training_groups, write_conditions
from fastcrystal.discovery.config import DiscoveryConfig
from fastcrystal.discovery.filtering import check_validity, deduplicate, drop_relaxed_copies, symmetrize
from fastcrystal.discovery.generate import accuracy, generate, usable
from fastcrystal.discovery.stage import Stage
from fastcrystal.features.elements import SYMBOLS
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.folder import relax_missing
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.stability.hull import Hull, HullEntry, best_per_formula, table, write_hull_data
from fastcrystal.structure.formula import parse_formula
from fastcrystal.utils.files import alone_in, write_json

logger = logging.getLogger(__name__)

#: first files of a run that has begun to work
ENTRIES, CONDITIONS = "0_references/entries.json", "1_conditions/conditions.jsonl"
HULL = "5_hull/hull.json"


def discover(config: DiscoveryConfig, run: Path, *, jobs: int | None = None) -> str:
    """Run all stages that are not done yet.

    Parameters
    ----------
    config : DiscoveryConfig
    run : Path
        Folder; one that holds a run goes on with the same settings.
    jobs : int, optional
        Processes; all cores where not given.

    Returns
    -------
    str
        Table 3 of the paper for these formulas, and where the files are.

    Raises
    ------
    ValueError
        If `run` holds a run with other settings or another process is at work there, no formula can be used, the
        hull lacks an element or is on another scale, or the potential cannot be loaded.
    ImportError
        If something is not installed; the message names the pip extra.
    """
    if not config.formulas:
        raise ValueError("nothing to discover: give at least one --formula")
    config.relax.check(config.potential)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    with alone_in(run):
        return _discover(config, run, CrystalGenerator.from_run(config.checkpoint, config.device), jobs)


def _discover(config: DiscoveryConfig, run: Path, model: CrystalGenerator, jobs: int | None) -> str:
    formulas, refused = usable(config.formulas, model)
    for formula, why in refused.items():
        logger.warning(f"{formula} is left out: {why}")
    if not formulas:
        raise ValueError(f"none of {', '.join(config.formulas)} can be generated")
    _same_request(config, run, model)
    hull = _references(config, run, formulas, jobs)
    asked = _conditions(config, run, model, formulas, hull)
    generated = Stage(run, "2_generated").once(
        lambda stage: generate(asked, model, stage.partial, seed=config.seed, steps=config.steps)
    )
    filtered = Stage(run, "3_filtered").once(lambda _: _filtered(config, generated, jobs), generated)
    relaxed = Stage(run, "4_relaxed").once(lambda stage: _relaxed(config, stage, filtered, jobs), filtered)
    placed = Stage(run, "5_hull").once(lambda _: drop_relaxed_copies(list(hull.place(relaxed)), jobs=jobs), relaxed)
    elements = sorted(frozenset().union(*(elements_of(f) for f in formulas)))
    if not (run / HULL).is_file():
        write_hull_data(run / HULL, hull, elements, placed)
    ranking.write(run / "6_ranking", placed, config.best)
    text = table(best_per_formula(placed), hull.scale)
    (run / "6_ranking" / "table.md").write_text(text + "\n", encoding="utf-8")
    _report(run)
    return f"{text}\n\nrun folder: {run}"


def _report(run: Path) -> None:
    """report.html; everything else of the run stands without it."""
    from fastcrystal.discovery.report import write_report

    try:
        logger.info(f"report: {write_report(run)}")
    except ImportError as error:
        logger.warning(f"no report.html: {error}; then `fastcrystal report {run}`")


def _same_request(config: DiscoveryConfig, run: Path, model: CrystalGenerator) -> None:
    """Write request.json, or compare with the one that is there."""
    path = run / "request.json"
    has_work = any((run / name).exists() for name in (ENTRIES, CONDITIONS))
    if not (path.is_file() and has_work):  # a run that failed before its first result binds nobody
        request: dict[str, Any] = {
            "fastcrystal": fastcrystal.__version__,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "formulas": list(config.formulas),
            "checkpoint": config.checkpoint,
            "options": config.to_dict(),
            "versions": _versions(),
            "model": {
                "step": model.step,
                "parameters": model.run.get("parameters"),
                "data": {k: v for k, v in model.run["data"].items() if k != "formula_units"},
                "train": model.config.to_dict(),
                "accuracy": accuracy(config.checkpoint),
            },
        }
        write_json(path, request)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    step = found["model"].get("step")
    if step != model.step:
        raise ValueError(
            f"{run} was begun with {config.checkpoint} at step {step}, which is now at {model.step}: use another folder"
        )
    changed = config.changes(DiscoveryConfig.from_dict(found["options"]))
    if changed:
        raise ValueError(f"{run} was begun with other settings ({'; '.join(changed)}): use these, or another folder")
    logger.info(f"going on with {run}")


def _versions() -> dict[str, str]:
    from importlib.metadata import distributions

    wanted = {"numpy", "torch", "pymatgen", "spglib", "ase"}
    wanted |= {"sevenn", "chgnet", "mattersim", "matgl", "torch-sim-atomistic"}
    found = {d.name: d.version for d in distributions() if d.name in wanted}
    return {"python": platform.python_version(), "machine": platform.machine(), **dict(sorted(found.items()))}


def _references(config: DiscoveryConfig, run: Path, formulas: list[str], jobs: int | None) -> Hull:
    """The hull, of the user's entries or of references relaxed with the potential."""
    from fastcrystal.stability.entries import read_entries
    from fastcrystal.stability.references import elements_source, reference_entries

    path = run / ENTRIES
    path.parent.mkdir(exist_ok=True)
    if path.is_file():
        return Hull([HullEntry(**e) for e in json.loads(path.read_text(encoding="utf-8"))["entries"]])
    systems = sorted({elements_of(f) for f in formulas}, key=sorted)
    if config.entries:
        hull = Hull(read_entries(Path(config.entries), config.scale))
        hull.check_scale(config.entries, config.potential)
    else:
        logger.info(f"structures of the elements: {elements_source()}")
        relaxed = (reference_entries(sorted(s), config.potential, config.relax, jobs=jobs) for s in systems)
        hull = Hull(list({e.id: e for entries in relaxed for e in entries}.values()))
    for system in systems:
        hull.check_terminals(system)
    write_json(path, {"scale": hull.scale, "entries": [vars(e) for e in hull.entries]})
    return hull


def elements_of(formula: str) -> frozenset[str]:
    """Symbols of the elements of a formula."""
    return frozenset(SYMBOLS[z] for z in parse_formula(formula))


def _conditions(
    config: DiscoveryConfig, run: Path, model: CrystalGenerator, formulas: list[str], hull: Hull
) -> list[Condition]:
    path = run / CONDITIONS
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        starts = {f: config.hull_energies.get(f, hull.formation_energy(f)) for f in formulas}
        groups = list(config.groups) or training_groups(model)
        write_conditions(path, plan(starts, groups, config.ladders, config.energies))
    return read_conditions(path)


def _filtered(config: DiscoveryConfig, generated: list[Candidate], jobs: int | None) -> list[Candidate]:
    valid = check_validity(generated)
    return deduplicate([symmetrize(c) for c in valid] if config.symmetrize else valid, jobs=jobs)


def _relaxed(config: DiscoveryConfig, stage: Stage, filtered: list[Candidate], jobs: int | None) -> list[Candidate]:
    chosen = choose(filtered, config.max_relax)
    waiting = [c for c in filtered if c.id in chosen]
    done = relax_missing(stage.partial, waiting, config.potential, config.relax, jobs=jobs, label=stage.name)
    others = f"not among the {config.max_relax} to relax"
    all_of_them = (done.get(c.id, c if c.reason else c.rejected(others)) for c in filtered)
    return [c if c.reason else ranking.with_group(c) for c in all_of_them]


def choose(candidates: list[Candidate], most: int) -> set[str]:
    """Ids of at most so many candidates of each formula: space groups take turns, and atoms far apart come first.

    Within a group and among the groups, the more room the nearest atoms have ("closeness") the earlier: from atoms on
    top of each other a relaxation takes longest and ends anywhere.
    """
    out: set[str] = set()
    formulas: dict[str, dict[int, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    for c in sorted(candidates, key=_room, reverse=True):
        if not c.reason:
            formulas[c.formula][int(c.measured.get("space_group") or 0)].append(c)
    for groups in formulas.values():  # each with most room first, and the groups by their first
        turns = [c.id for turn in zip_longest(*groups.values()) for c in turn if c is not None]
        out |= set(turns[:most])
    return out


def _room(candidate: Candidate) -> tuple[float, int]:
    return float(candidate.measured.get("closeness", 0.0)), int(candidate.measured.get("copies", 1))
