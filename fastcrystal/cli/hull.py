"""`fastcrystal relax`, `hull`, `vasp-inputs`, `vasp-results`: the stages after generation, for anybody's crystals."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcrystal.cli.options import add_jobs
from fastcrystal.cli.relax_options import add_relaxation, settings_of

if TYPE_CHECKING:
    from fastcrystal.relaxation.candidate import Candidate
    from fastcrystal.relaxation.settings import RelaxSettings
    from fastcrystal.stability.hull import Hull, HullEntry

CRYSTALS = "a CIF, a folder or archive of them, a store, or what another of these commands wrote"


def add_hull(commands: Any) -> None:
    """The four commands."""
    _add_relax(commands)
    _add_hull(commands)
    _add_vasp_inputs(commands)
    _add_vasp_results(commands)


def _add_entries(p: Any) -> None:
    p.add_argument("--entries", type=Path, help="your energies: .json, .jsonl or .csv (docs/discovery.md)")
    p.add_argument("--scale", help="what the energies in --entries are, for example PBE")


def _add_relax(commands: Any) -> None:
    p = commands.add_parser("relax", help="relax crystals with an interatomic potential")
    p.set_defaults(run_command=_relax)
    p.add_argument("source", type=Path, help=CRYSTALS)
    p.add_argument("--out", type=Path, required=True, help="folder; the same command goes on there")
    add_relaxation(p)
    add_jobs(p, "processes (default: all cores)")


def _relax(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.inputs import write_cifs
    from fastcrystal.relaxation.folder import RELAXED, relax_into

    relaxed = relax_into(args.out, _load(args.source), args.potential, settings_of(args), jobs=args.jobs)
    count = write_cifs(relaxed, args.out / "cif")
    _complain(c for c in relaxed if c.reason)
    converged = sum(not c.reason and c.measured["converged"] for c in relaxed)
    print(f"{count} of {len(relaxed)} relaxed, {converged} converged: {args.out / RELAXED} and {args.out / 'cif'}")


def _add_hull(commands: Any) -> None:
    p = commands.add_parser("hull", help="how far relaxed crystals lie above or below the convex hull: table 3")
    p.set_defaults(run_command=_hull)
    p.add_argument("source", type=Path, help="what `fastcrystal relax` wrote")
    p.add_argument("--out", type=Path, help="folder for placed.jsonl, table.md and hull.json (default: the source's)")
    _add_entries(p)
    _add_references(p)


def _add_references(p: Any) -> None:
    p.add_argument(
        "--potential", help="of the references that are relaxed where --entries is not given (default: the source's)"
    )
    p.add_argument("--per-formula", type=int, default=4, help="reference prototypes of each formula (4)")
    p.add_argument("--cache", type=Path, help="folder of relaxed references (~/.cache/fastcrystal/references)")
    add_jobs(p, "processes (default: all cores)")


def _hull(args: argparse.Namespace) -> None:
    from fastcrystal.stability.hull import Hull, entry_of, one_scale

    candidates = _load(args.source, unplaced=True)
    running = [c for c in candidates if not c.reason]
    if not running:
        raise ValueError(f"no candidate in {args.source} is in the running: nothing to place")
    scale = one_scale(entry_of(c) for c in running)
    elements = sorted({e.symbol for c in running for e in c.structure().composition})
    if args.entries:
        from fastcrystal.stability.entries import read_entries

        hull = Hull(read_entries(args.entries, args.scale or ""))
        hull.check_terminals(elements)
    else:
        from fastcrystal.relaxation.potentials import scale_of
        from fastcrystal.stability.references import elements_source, reference_entries

        name = args.potential or _potential_of(args.source)
        if scale_of(name) != scale:
            raise ValueError(
                f"the candidates' energies are on the scale {scale!r}, references by {name} would be on "
                f"{scale_of(name)!r}: give the --potential that relaxed them"
            )
        how = _settings_of(args.source)
        print(f"structures of the elements: {elements_source()}", file=sys.stderr)
        hull = Hull(
            reference_entries(elements, name, how, per_formula=args.per_formula, cache=args.cache, jobs=args.jobs)
        )
    placed = list(hull.place(candidates))
    out = args.out or (args.source if args.source.is_dir() else args.source.parent)
    print(write_placed(placed, hull, elements, out))


def write_placed(placed: Sequence[Candidate], hull: Hull, elements: Sequence[str], out: Path) -> str:
    """placed.jsonl, table.md and hull.json in a folder; returns the table."""
    from fastcrystal.relaxation.candidate import write_candidates
    from fastcrystal.stability.hull import best_per_formula, hull_data, table
    from fastcrystal.utils.files import write_json

    out.mkdir(parents=True, exist_ok=True)
    write_candidates(out / "placed.jsonl", placed)
    text = table(best_per_formula(placed), hull.scale)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    _complain(c for c in placed if c.reason)
    try:
        write_json(out / "hull.json", hull_data(hull, elements, placed))
    except ValueError as error:  # candidates of several systems, too many elements for one picture
        print(f"no hull.json: {error}", file=sys.stderr)
    return text


def _add_vasp_inputs(commands: Any) -> None:
    p = commands.add_parser("vasp-inputs", help="VASP inputs of the best candidates, with the paper's settings")
    p.set_defaults(run_command=_vasp_inputs)
    p.add_argument("source", type=Path, help=CRYSTALS)
    p.add_argument("--out", type=Path, required=True, help="new folder")
    p.add_argument("--count", type=int, default=10, help="candidates, lowest above the hull first (10)")
    p.add_argument("--with-references", action="store_true", help="also the elements and known compounds, for a hull")
    p.add_argument("--scale", default="PBE", help="what energies of these calculations are called (PBE)")
    _add_references(p)


def _vasp_inputs(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.vasp import best, write_inputs

    chosen = best(_load(args.source), args.count)
    references: list[Candidate] = []
    if args.with_references:
        from fastcrystal.stability.references import relaxed_references

        elements = sorted({e.symbol for c in chosen for e in c.structure().composition})
        name = args.potential or _potential_of(args.source)
        references = list(
            relaxed_references(
                elements,
                name,
                _settings_of(args.source),
                per_formula=args.per_formula,
                cache=args.cache,
                jobs=args.jobs,
            )
        )
    print(write_inputs(chosen, args.out, references, args.scale))


def _add_vasp_results(commands: Any) -> None:
    p = commands.add_parser("vasp-results", help="read what VASP made of the inputs, and place it on the hull")
    p.set_defaults(run_command=_vasp_results)
    p.add_argument("folder", type=Path, help="what `fastcrystal vasp-inputs` wrote, with a vasprun.xml(.gz) in each")
    _add_entries(p)


def _vasp_results(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.vasp import hull_of, read_results
    from fastcrystal.relaxation.candidate import write_candidates

    results = read_results(args.folder)
    entries: list[HullEntry] = []
    if args.entries:
        from fastcrystal.stability.entries import read_entries

        entries = read_entries(args.entries, args.scale or "")
    write_candidates(args.folder / "results.jsonl", [*results.candidates, *results.references])
    _complain(c for c in results.references if c.reason)
    hull = hull_of(results, entries)
    placed = list(hull.place(results.candidates))
    elements = sorted({e.symbol for c in placed for e in c.structure().composition})
    print(write_placed(placed, hull, elements, args.folder))


def _load(path: Path, *, unplaced: bool = False) -> list[Candidate]:
    from fastcrystal.discovery.inputs import load_candidates

    candidates, rejects = load_candidates(path, unplaced=unplaced)
    for reject in rejects:
        print(f"left out: {reject.id}: {reject.reason}", file=sys.stderr)
    return candidates


def _potential_of(source: Path) -> str:
    """The potential of the source's energies; SevenNet-0 where it says none."""
    return str(_noted(source).get("potential", "sevennet-0"))


def _settings_of(source: Path) -> RelaxSettings:
    """How the source was relaxed: references are to be relaxed alike."""
    from fastcrystal.relaxation.settings import RelaxSettings

    known = RelaxSettings().to_dict()
    return RelaxSettings.from_dict({k: v for k, v in _noted(source).items() if k in known})


def _noted(source: Path) -> dict[str, Any]:
    """Potential and settings, as `fastcrystal relax` noted them beside its results, or `discover` in its run folder."""
    import json

    from fastcrystal.relaxation.folder import SETTINGS

    folder = source if source.is_dir() else source.parent
    if (folder / SETTINGS).is_file():
        return dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    request = next((f / "request.json" for f in (folder, folder.parent) if (f / "request.json").is_file()), None)
    if request is None:
        return {}
    options = json.loads(request.read_text(encoding="utf-8"))["options"]
    return {"potential": options.get("potential", "sevennet-0"), **options.get("relax", {})}


def _complain(rejected: Iterable[Candidate]) -> None:
    for c in rejected:
        print(f"out: {c.id}: {c.reason}", file=sys.stderr)
