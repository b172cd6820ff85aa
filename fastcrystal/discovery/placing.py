"""Single steps for anybody's crystals: the commands relax, hull, vasp-inputs and vasp-results."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcrystal.discovery.inputs import PLACED, load_candidates, write_cifs
from fastcrystal.discovery.vasp import SCALE, best, hull_of, read_results, write_inputs
from fastcrystal.relaxation.candidate import Candidate, write_candidates
from fastcrystal.relaxation.folder import RELAXED, SETTINGS, relax_into
from fastcrystal.relaxation.potentials import scale_of
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.stability.entries import read_entries
from fastcrystal.stability.hull import Hull, best_per_formula, entry_of, one_scale, table, write_hull_data
from fastcrystal.stability.references import elements_source, reference_entries, relaxed_references
from fastcrystal.utils.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceSettings(Settings):
    """References of a hull, relaxed as the candidates were."""

    potential: str = ""
    """Potential of the references; that of the candidates where empty."""
    per_formula: int = 4
    """Reference prototypes of each formula."""
    cache: Path | None = None
    """Folder of relaxed references; ~/.cache/fastcrystal/references where none."""


@dataclass(frozen=True)
class VaspSettings(ReferenceSettings):
    """VASP inputs of the best candidates."""

    count: int = 10
    """Candidates, lowest above the hull first."""
    with_references: bool = False
    """Inputs also for the elements and known compounds, so that there is a hull on the same scale."""
    scale: str = SCALE
    """Name of the energy scale of these calculations."""


def relax_source(source: Path, out: Path, potential: str, settings: RelaxSettings, *, jobs: int | None = None) -> str:
    """Relax the crystals of a path into a folder, with a CIF each; returns a line for people.

    Raises
    ------
    ValueError, ImportError
        As `load_candidates` and `relax_into`.
    """
    relaxed = relax_into(out, _load(source), potential, settings, jobs=jobs)
    count = write_cifs(relaxed, out / "cif")
    _warn(relaxed)
    converged = sum(not c.reason and c.measured["converged"] for c in relaxed)
    return f"{count} of {len(relaxed)} relaxed, {converged} converged: {out / RELAXED} and {out / 'cif'}"


def place_source(
    source: Path,
    out: Path | None = None,
    *,
    entries: Path | None = None,
    scale: str = "",
    references: ReferenceSettings | None = None,
    jobs: int | None = None,
) -> str:
    """Place relaxed candidates on the hull; returns table 3 of the paper.

    Parameters
    ----------
    source : Path
        What `relax_source` or a discovery wrote.
    out : Path, optional
        Folder for placed.jsonl, table.md and hull.json; that of the source where not given.
    entries : Path, optional
        The user's own energies (`read_entries`), on the scale `scale`; references are relaxed where not given.
    references : ReferenceSettings, optional
    jobs : int, optional
        Processes; all cores where not given.

    Raises
    ------
    ValueError
        If no candidate has an energy, energies are on several scales, or an element has no entry.
    ImportError
        If the potential of the references is not installed.
    """
    candidates = _load(source, unplaced=True)
    running = [c for c in candidates if not c.reason]
    if not running:
        raise ValueError(f"no candidate in {source} is in the running: nothing to place")
    own = one_scale(entry_of(c) for c in running)
    elements = _elements(running)
    if entries is not None:
        hull = Hull(read_entries(entries, scale))
        hull.check_terminals(elements)
    else:
        asked = references or ReferenceSettings()
        name, settings = _relaxed_with(source, asked.potential)
        if scale_of(name) != own:
            raise ValueError(
                f"the candidates' energies are on the scale {own!r}, references by {name} would be on "
                f"{scale_of(name)!r}: give the potential that relaxed them"
            )
        logger.info(f"structures of the elements: {elements_source()}")
        how: dict[str, Any] = {"per_formula": asked.per_formula, "cache": asked.cache, "jobs": jobs}
        hull = Hull(reference_entries(elements, name, settings, **how))
    return _write_placed(candidates, hull, elements, out or (source if source.is_dir() else source.parent))


def vasp_inputs(source: Path, out: Path, settings: VaspSettings, *, jobs: int | None = None) -> str:
    """Write VASP inputs of the best candidates of a path; returns what was written, for people.

    Raises
    ------
    ValueError, ImportError
        As `load_candidates`, `best`, `write_inputs` and `reference_entries`.
    """
    chosen = best(_load(source), settings.count)
    references: list[Candidate] = []
    if settings.with_references:
        name, relaxation = _relaxed_with(source, settings.potential)
        how: dict[str, Any] = {"per_formula": settings.per_formula, "cache": settings.cache, "jobs": jobs}
        references = relaxed_references(_elements(chosen), name, relaxation, **how)
    return str(write_inputs(chosen, out, references, settings.scale))


def vasp_results(folder: Path, entries: Path | None = None, scale: str = "") -> str:
    """Read VASP's results of `vasp_inputs` and place them on the hull; returns table 3 of the paper.

    Raises
    ------
    ValueError
        As `read_results`, `read_entries` and `hull_of`.
    """
    results = read_results(folder)
    own = [] if entries is None else read_entries(entries, scale)
    write_candidates(folder / "results.jsonl", [*results.candidates, *results.references])
    _warn(results.references)
    hull = hull_of(results, own)
    return _write_placed(results.candidates, hull, _elements(results.candidates), folder)


def _write_placed(candidates: Sequence[Candidate], hull: Hull, elements: Sequence[str], out: Path) -> str:
    """placed.jsonl, table.md and hull.json in a folder; returns the table."""
    placed = list(hull.place(candidates))
    out.mkdir(parents=True, exist_ok=True)
    write_candidates(out / PLACED, placed)
    text = table(best_per_formula(placed), hull.scale)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    _warn(placed)
    write_hull_data(out / "hull.json", hull, elements, placed)
    return text


def _load(path: Path, *, unplaced: bool = False) -> list[Candidate]:
    candidates, rejects = load_candidates(path, unplaced=unplaced)
    for reject in rejects:
        logger.warning(f"left out: {reject.id}: {reject.reason}")
    return candidates


def _warn(candidates: Iterable[Candidate]) -> None:
    for c in candidates:
        if c.reason:
            logger.warning(f"out: {c.id}: {c.reason}")


def _elements(candidates: Iterable[Candidate]) -> list[str]:
    return sorted({symbol for c in candidates for symbol in c.amounts})


def _relaxed_with(source: Path, potential: str = "") -> tuple[str, RelaxSettings]:
    """Potential and settings that the source was relaxed with: references are to be relaxed alike.

    From what `relax_into` noted beside its results, or a discovery in its run folder; SevenNet-0 where neither did.
    """
    folder = source if source.is_dir() else source.parent
    noted: dict[str, Any] = {}
    if (folder / SETTINGS).is_file():
        noted = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    elif requests := [f / "request.json" for f in (folder, folder.parent) if (f / "request.json").is_file()]:
        options = json.loads(requests[0].read_text(encoding="utf-8"))["options"]
        noted = {"potential": options.get("potential", "sevennet-0"), **options.get("relax", {})}
    own = {k: v for k, v in noted.items() if k in RelaxSettings.__dataclass_fields__}
    return potential or str(noted.get("potential", "sevennet-0")), RelaxSettings.from_dict(own)
