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
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fastcrystal
from fastcrystal.discovery import ranking
from fastcrystal.discovery.conditions import plan, read_conditions, training_groups, write_conditions
from fastcrystal.discovery.config import DiscoverConfig
from fastcrystal.discovery.filtering import check_validity, deduplicate, drop_relaxed_copies, symmetrize
from fastcrystal.discovery.generate import accuracy, generate, usable
from fastcrystal.discovery.stage import Stage
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.folder import relax_missing
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.sampling.generator import Generator
from fastcrystal.stability.hull import Hull, HullEntry, best_per_formula, hull_data, table
from fastcrystal.utils.files import alone_in, write_json

logger = logging.getLogger(__name__)

#: what a run has when it has begun to work
ENTRIES, CONDITIONS = "0_references/entries.json", "1_conditions/conditions.jsonl"


def discover(config: DiscoverConfig, run: Path, *, device: str = "auto", jobs: int | None = None) -> str:
    """Run all stages that are not done yet.

    Parameters
    ----------
    config : DiscoverConfig
    run : Path
        Folder; one that holds a run goes on with the same settings.
    device : str
        Of the model.
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
    RelaxSettings.from_dict(config.relax).check(config.potential)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    with alone_in(run):
        return _discover(config, run, Generator.from_run(config.checkpoint, device), jobs)


def _discover(config: DiscoverConfig, run: Path, model: Generator, jobs: int | None) -> str:
    formulas, refused = usable(config.formulas, model)
    for formula, why in refused.items():
        logger.warning(f"{formula} is left out: {why}")
    if not formulas:
        raise ValueError(f"none of {', '.join(config.formulas)} can be generated")
    _same_request(config, run, model)
    hull = _references(config, run, formulas, jobs)
    generated = _generated(config, run, model, formulas, hull, jobs)
    filtered = _filtered(config, run, generated, jobs)
    relaxed = _relaxed(config, run, filtered, jobs)
    placed = _placed(run, relaxed, hull, formulas, jobs)
    ranking.write(run / "6_ranking", placed, config.best)
    rows = best_per_formula(placed)
    (run / "6_ranking" / "table.md").write_text(table(rows, hull.scale) + "\n", encoding="utf-8")
    _report(run)
    return f"{table(rows, hull.scale)}\n\nrun folder: {run}"


def _report(run: Path) -> None:
    """report.html; everything else of the run stands without it."""
    from fastcrystal.discovery.report import write_report

    try:
        logger.info(f"report: {write_report(run)}")
    except ImportError as error:
        logger.warning(f"no report.html: {error}; then `fastcrystal report {run}`")


def _same_request(config: DiscoverConfig, run: Path, model: Generator) -> None:
    """Write request.json, or compare with the one that is there."""
    path = run / "request.json"
    options = json.loads(json.dumps(config.to_dict()))
    has_work = any((run / name).exists() for name in (ENTRIES, CONDITIONS))
    if not (path.is_file() and has_work):  # a run that failed before its first result binds nobody
        request: dict[str, Any] = {
            "fastcrystal": fastcrystal.__version__,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "formulas": list(config.formulas),
            "checkpoint": config.checkpoint,
            "options": options,
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
    before, step = found["options"], found["model"].get("step")
    if step != model.step:
        raise ValueError(
            f"{run} was begun with {config.checkpoint} at step {step}, which is now at {model.step}: use another folder"
        )
    for relax in (options["relax"], before.get("relax", {})):
        for where in ("device", "batch"):  # a run may go on with another, as with another number of processes
            relax.pop(where, None)
    changed = {k: (before.get(k), v) for k, v in options.items() if before.get(k) != v}
    if changed:
        what = "; ".join(f"{k} was {a}, now {b}" for k, (a, b) in changed.items())
        raise ValueError(f"{run} was begun with other settings ({what}): use these, or another folder")
    logger.info(f"going on with {run}")


def _versions() -> dict[str, str]:
    from importlib.metadata import distributions

    wanted = {"numpy", "torch", "pymatgen", "spglib", "ase"}
    wanted |= {"sevenn", "chgnet", "mattersim", "matgl", "torch-sim-atomistic"}
    found = {d.name: d.version for d in distributions() if d.name in wanted}
    return {"python": platform.python_version(), "machine": platform.machine(), **dict(sorted(found.items()))}


def _references(config: DiscoverConfig, run: Path, formulas: list[str], jobs: int | None) -> Hull:
    """The hull, of the user's entries or of references relaxed with the potential."""
    from pymatgen.core import Composition

    from fastcrystal.stability.entries import read_entries
    from fastcrystal.stability.references import elements_source, reference_entries

    folder = run / "0_references"
    folder.mkdir(exist_ok=True)
    path = run / ENTRIES
    if path.is_file():
        return Hull([HullEntry(**e) for e in json.loads(path.read_text(encoding="utf-8"))["entries"]])
    systems = {frozenset(e.symbol for e in Composition(f).elements) for f in formulas}
    if config.entries:
        entries = read_entries(Path(config.entries), config.scale)
    else:
        logger.info(f"structures of the elements: {elements_source()}")
        found = {
            e.id: e
            for system in sorted(systems, key=sorted)
            for e in reference_entries(
                sorted(system), config.potential, RelaxSettings.from_dict(config.relax), jobs=jobs
            )
        }
        entries = list(found.values())
    hull = Hull(entries)
    hull.check_scale(config.entries, config.potential)
    for system in systems:
        hull.check_terminals(system)
    write_json(path, {"scale": hull.scale, "entries": [vars(e) for e in hull.entries]})
    return hull


def hull_energy(hull: Hull, formula: str) -> float:
    """Formation energy of the hull at a composition, eV/atom: at most 0."""
    from pymatgen.core import Composition

    composition = Composition(formula)
    diagram = hull.diagram(e.symbol for e in composition.elements)
    elements = sum(
        composition.get_atomic_fraction(e) * diagram.el_refs[e].energy_per_atom for e in composition.elements
    )
    return float(diagram.get_hull_energy_per_atom(composition) - elements)


def _generated(
    config: DiscoverConfig, run: Path, model: Generator, formulas: list[str], hull: Hull, jobs: int | None
) -> list[Candidate]:
    conditions = run / CONDITIONS
    if not conditions.is_file():
        conditions.parent.mkdir(exist_ok=True)
        starts: Mapping[str, float] = {f: config.hull_energies.get(f, hull_energy(hull, f)) for f in formulas}
        groups = list(config.groups) or training_groups(model)
        write_conditions(conditions, plan(starts, groups, config.ladders, config.energies))
    stage = Stage(run, "2_generated")
    if stage.is_done:
        return stage.read()
    asked = read_conditions(conditions)
    return stage.finish(generate(asked, model, stage.partial, seed=config.seed, steps=config.steps))


def _filtered(config: DiscoverConfig, run: Path, generated: list[Candidate], jobs: int | None) -> list[Candidate]:
    stage = Stage(run, "3_filtered")
    if stage.is_done:
        return stage.read()
    valid = check_validity(generated)
    if config.symmetrize:
        valid = [symmetrize(c) for c in valid]
    return stage.finish(deduplicate(valid, jobs=jobs), generated)


def _relaxed(config: DiscoverConfig, run: Path, filtered: list[Candidate], jobs: int | None) -> list[Candidate]:
    stage = Stage(run, "4_relaxed")
    if stage.is_done:
        return stage.read()
    chosen = choose(filtered, config.max_relax)
    waiting = [c for c in filtered if c.id in chosen]
    settings = RelaxSettings.from_dict(config.relax)
    done = relax_missing(stage.partial, waiting, config.potential, settings, jobs=jobs, label=stage.name)
    passed_on = (
        done[c.id] if c.id in chosen else c if c.reason else c.rejected(f"not among the {config.max_relax} to relax")
        for c in filtered
    )
    return stage.finish((c if c.reason else ranking.with_group(c) for c in passed_on), filtered)


def choose(candidates: list[Candidate], most: int) -> set[str]:
    """Ids of at most so many candidates of each formula: space groups take turns, and atoms far apart come first.

    Within a group and among the groups, the more room the nearest atoms have ("closeness") the earlier: from atoms on
    top of each other a relaxation takes longest and ends anywhere.
    """
    out: set[str] = set()
    formulas: dict[str, dict[int, list[Candidate]]] = defaultdict(lambda: defaultdict(list))
    for c in candidates:
        if not c.reason:
            formulas[c.formula][int(c.measured.get("space_group") or 0)].append(c)
    for groups in formulas.values():
        queues = [sorted(members, key=_room, reverse=True) for members in groups.values()]
        queues.sort(key=lambda q: _room(q[0]), reverse=True)
        turn = 0
        ids: list[str] = []
        while any(turn < len(q) for q in queues):
            ids += [q[turn].id for q in queues if turn < len(q)]
            turn += 1
        out |= set(ids[:most])
    return out


def _room(candidate: Candidate) -> tuple[float, int]:
    return float(candidate.measured.get("closeness", 0.0)), int(candidate.measured.get("copies", 1))


def _placed(run: Path, relaxed: list[Candidate], hull: Hull, formulas: list[str], jobs: int | None) -> list[Candidate]:
    from pymatgen.core import Composition

    stage = Stage(run, "5_hull")
    if stage.is_done:
        return stage.read()
    placed = drop_relaxed_copies(list(hull.place(relaxed)), jobs=jobs)
    elements = sorted({e.symbol for f in formulas for e in Composition(f).elements})
    try:
        write_json(stage.folder / "hull.json", hull_data(hull, elements, placed))
    except ValueError as error:  # formulas of many systems have no common diagram; each has been placed on its own
        logger.warning(f"no picture of one hull: {error}")
    return stage.finish(placed, relaxed)
