"""Generation: candidates from conditions, batch by batch, each written down before the next is begun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.discovery.conditions import Condition
from fastcrystal.discovery.filtering import crystals_of, only_finite
from fastcrystal.relaxation.candidate import Candidate, read_candidates
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.sampling.pretrained import resolve
from fastcrystal.sampling.request import Request
from fastcrystal.sampling.request import conditions as conditions_of
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.formula import parse_formula
from fastcrystal.utils.files import cut_broken_line
from fastcrystal.utils.progress import progress_bar

#: crystals of a batch, and of a commit
BATCH = 256


def usable(formulas: Sequence[str], model: CrystalGenerator) -> tuple[list[str], dict[str, str]]:
    """The formulas that the model can be asked for, and the reason for each of the others.

    Parameters
    ----------
    formulas : sequence of str
        As a user writes them; one that comes twice, in whatever order of its elements, counts once.
    model : CrystalGenerator
    """
    reasons = {formula: _why_not(formula, model) for formula in formulas}
    seen: dict[tuple[int, ...], str] = {}
    for formula in [f for f, why in reasons.items() if not why]:
        first = seen.setdefault(tuple(sorted(parse_formula(formula))), formula)
        if first != formula:
            reasons[formula] = f"the same atoms as {first}"
    return [f for f, why in reasons.items() if not why], {f: why for f, why in reasons.items() if why}


def accuracy(checkpoint: str | Path) -> dict[str, Any] | None:
    """Match rates of a model beside their baselines, from RUN/result.json; None where there is none."""
    path = resolve(checkpoint) / "result.json"
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    rates = [f"{who}_{what}" for who in ("match_rate", "retrieval", "chance") for what in ("fit", "rms")]
    return {k: result[k] for k in ("n_test", *rates) if result.get(k) is not None}


def _why_not(formula: str, model: CrystalGenerator) -> str:
    try:
        conditions_of(Request(formula, count=1), model)
    except ValueError as error:
        return str(error)
    return ""


def batch_of(conditions: Sequence[Condition], model: CrystalGenerator) -> CrystalBatch:
    """Conditions as the model's input; the number of sites is the commonest among training crystals of that kind."""
    kinds: dict[tuple[str, int], Crystal] = {}
    for c in conditions:
        if (c.formula, c.space_group) not in kinds:
            one, _ = conditions_of(Request(c.formula, c.space_group, c.energy, count=1), model)
            (kinds[c.formula, c.space_group],) = crystals_of(one)
    crystals = [kinds[c.formula, c.space_group] for c in conditions]
    groups, energies = [c.space_group for c in conditions], [c.energy for c in conditions]
    return CrystalDataset.from_crystals(crystals, groups, energies).batch(max_sites=model.max_sites)


def generate(
    conditions: Sequence[Condition],
    model: CrystalGenerator,
    path: Path,
    *,
    seed: int = 0,
    batch: int = BATCH,
    progress: bool = True,
    **sampling: Any,
) -> list[Candidate]:
    """One candidate for each condition; goes on where a killed run was.

    Parameters
    ----------
    conditions : sequence of Condition
    model : CrystalGenerator
    path : Path
        .jsonl file of the candidates; those that are in it are not generated again.
    seed : int
    batch : int
        Crystals at a time. The same conditions and seed give the same crystals, interrupted or not.
    progress : bool
        Show a progress bar on stderr.
    **sampling
        As for `CrystalGenerator.sample`.
    """
    cut_broken_line(path)
    done = sum(1 for _ in read_candidates(path)) // batch * batch
    _keep_lines(path, done)
    with (
        path.open("a", encoding="utf-8") as out,
        progress_bar(total=len(conditions), initial=done, unit="crystal", desc="generating", show=progress) as bar,
    ):
        for first in range(done, len(conditions), batch):
            part = conditions[first : first + batch]
            made = model.sample(batch_of(part, model), seed=seed, first=first, batch_size=batch, **sampling)
            for c, crystal in zip(part, crystals_of(made), strict=True):
                candidate = Candidate(c.id, c.formula, crystal, c.space_group, c.energy, {"ladder": c.ladder})
                out.write(only_finite(candidate).to_json() + "\n")
            out.flush()
            bar.update(len(part))
    return list(read_candidates(path))


def _keep_lines(path: Path, count: int) -> None:
    """Cut a file to its first lines: half a batch is made again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if len(lines) > count:
            path.write_text("".join(lines[:count]), encoding="utf-8")
