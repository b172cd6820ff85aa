"""`fastcrystal data build prototypes`: decorate, relax, reference, deduplicate, and write the default data set.

Every finished relaxation is one line in WORK/relaxed.jsonl, written at once: a killed build goes on where it was, and
`--set finish_only=true` makes a data set of what is there. Rejected candidates keep their reason in the same file.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastcrystal.data.datasets.prototypes import DecoratedPrototype, decorate, default_formulas, library
from fastcrystal.parallel.map import map_parallel
from fastcrystal.relaxation.ase import relax, single_point
from fastcrystal.relaxation.potentials import load_potential, one_thread, scale_of
from fastcrystal.stability.elemental import elemental_references
from fastcrystal.utils.files import cut_broken_line
from fastcrystal.utils.progress import progress_bar

logger = logging.getLogger(__name__)

#: formulas take turns, this many prototypes (smallest cells first) at a time: an interrupted build covers them all
ROUND = 6
#: larger elemental references (up to 100 sites, relaxed with PBE already) get a single point
MAX_RELAXED_REFERENCE = 16


@dataclass(frozen=True)
class BuildConfig:
    """Settings of a build; written to WORK/build.json and compared when it is resumed."""

    potential: str = "sevennet-0"
    """Interatomic potential, by name."""
    max_sites: int = 12
    """Largest primitive cell among the prototypes."""
    max_prototypes: int = 36
    """Most decorations of a formula."""
    steps: int = 50
    """Most FIRE steps."""
    max_force: float = 0.1
    """Largest force at the end of a relaxation, eV/angstrom."""
    window: float = 1.5
    """Keep polymorphs within this of their formula's lowest, eV/atom."""
    symprec: float = 0.1
    """Tolerance of spglib, angstrom."""


def relax_all(work: Path, config: BuildConfig, formulas: Sequence[str], jobs: int | None) -> None:
    """Relax every candidate of `formulas` and every elemental reference that WORK/relaxed.jsonl lacks.

    Raises
    ------
    ValueError
        If WORK holds a build with other settings.
    ImportError
        If the potential is not installed, here or where `fastcrystal.parallel.map.backend` has it done.
    """
    work.mkdir(parents=True, exist_ok=True)
    _check_same_build(work / "build.json", config)
    cut_broken_line(work / "relaxed.jsonl")
    done = {record["key"] for record in read_records(work)}
    shapes = library(config.max_sites)
    ranked = [
        (rank // ROUND, candidate)
        for formula in formulas
        for rank, candidate in enumerate(decorate(formula, shapes, config.max_prototypes))
    ]
    ranked.sort(key=lambda pair: pair[0])
    tasks = [*elemental_references(formulas), *(candidate for _, candidate in ranked)]
    tasks = [c for c in tasks if c.key not in done]
    if done:
        logger.info(f"resuming {work}: {len(done)} done, {len(tasks)} to go")
    with (
        (work / "relaxed.jsonl").open("a", encoding="utf-8") as out,
        progress_bar(total=len(tasks), unit="crystal", desc=f"relaxing with {scale_of(config.potential)}") as bar,
    ):
        relaxed = functools.partial(_relax_one, config)
        for record in map_parallel(relaxed, tasks, jobs, ordered=False, label="candidate"):
            out.write(json.dumps(record) + "\n")
            out.flush()
            bar.update()


def read_records(work: Path) -> Iterator[dict[str, Any]]:
    """The records of WORK/relaxed.jsonl; a last line cut short by a kill is left out and will be made again."""
    path = work / "relaxed.jsonl"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        for line in text[: text.rfind("\n") + 1].splitlines():
            yield json.loads(line)


#: the potential of each thread of a worker (those of a Dask worker are threads): loaded once, and not to be shared
_loaded = threading.local()


def _potential(name: str) -> Any:
    if getattr(_loaded, "name", None) != name:
        _loaded.potential, _loaded.name = load_potential(name), name
    return _loaded.potential


def _relax_one(config: BuildConfig, candidate: DecoratedPrototype) -> dict[str, Any]:
    """One record: the relaxed crystal, or the reason why there is none."""
    potential = _potential(config.potential)
    record: dict[str, Any] = {"key": candidate.key, "formula": candidate.formula, "prototype": candidate.prototype}
    try:
        crystal = candidate.crystal
        with one_thread():
            if candidate.prototype == "reference" and crystal.num_sites > MAX_RELAXED_REFERENCE:
                done = single_point(crystal, potential)
            else:
                done = relax(crystal, potential, steps=config.steps, max_force=config.max_force)
    except Exception as error:  # one bad structure never stops the rest; its reason is kept
        return {**record, "reason": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return {
        **record,
        "species": crystal.species.tolist(),
        "frac": np.round(done.crystal.frac, 7).tolist(),
        "lattice": np.round(done.crystal.lattice, 7).tolist(),
        "energy": done.energy,
        "max_force": done.max_force,
        "converged": done.converged,
        "steps": done.steps,
    }


def _check_same_build(path: Path, config: BuildConfig) -> None:
    if not path.is_file():
        path.write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = {k: (before.get(k), v) for k, v in asdict(config).items() if before.get(k) != v}
    if changed:
        what = ", ".join(f"{k} was {a}, now {b}" for k, (a, b) in changed.items())
        raise ValueError(
            f"{path.parent} holds a build with other settings ({what}): use another folder or these settings"
        )


def main_formulas() -> list[str]:
    """The default set's formulas, each once, in building order."""
    return list(Counter(f for group in default_formulas().values() for f in group))


def build(
    work: Path,
    out: Path,
    config: BuildConfig,
    formulas: Sequence[str] | None = None,
    jobs: int | None = None,
    *,
    finish_only: bool = False,
) -> str:
    """Build the data set and its card.

    Parameters
    ----------
    work : Path
        Folder of partial results; a build that was killed goes on there.
    out : Path
        .npz to write; the card goes beside it as .md.
    config : BuildConfig
    formulas : sequence of str, optional
        The default set's where not given.
    jobs : int, optional
        Processes; all cores where not given.
    finish_only : bool
        Relax nothing more.

    Returns
    -------
    str
        What was written, for people.

    Raises
    ------
    ValueError, ImportError
        As `relax_all` and `fastcrystal.experiments.default_data.finish.finish`.
    """
    from importlib.metadata import version

    from fastcrystal.experiments.default_data.finish import card, finish

    if not finish_only:
        relax_all(work, config, formulas or main_formulas(), jobs)
    elif not (work / "relaxed.jsonl").is_file():
        raise ValueError(f"{work} holds no relaxed crystals: build without finish_only first")
    _check_same_build(work / "build.json", config)
    done = finish(read_records(work), window=config.window, symprec=config.symprec)
    out.parent.mkdir(parents=True, exist_ok=True)
    done.data.save(out)
    versions = {name: version(name) for name in ("sevenn", "ase", "matcalc", "pymatgen", "spglib", "torch")}
    page = out.with_suffix(".md")
    page.write_text(card(done, asdict(config), versions), encoding="utf-8")
    summary = ", ".join(f"{n} {what}" for what, n in done.counts.items())
    return f"{summary}\nwritten: {out} ({out.stat().st_size / 1e3:.0f} kB) and {page}"
