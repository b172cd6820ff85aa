"""Near-duplicates: crystals that match another one of their formula, by pymatgen's structure matching.

    report = find_near_duplicates(open_store("aflow.curated"), PairSettings(sample=200))
    print(report)
    report.save("near_duplicates.parquet")

A group is a reduced formula, as in curation. Of its pairs these are left out, and counted:

    volume     volumes per atom that differ by more than 15 %. pymatgen scales volumes away and calls NaCl and a
               compressed NaCl the same structure; as duplicates in a data set they are not.
    sites      other numbers of sites, only where asked for: the modification task makes no pair of them. The matcher's
               own search for the primitive cell forgives 0.25 angstrom, so that it takes a slightly distorted supercell
               for its parent; leaving these pairs out loses matches.
    energy     formation energies further apart than a limit, only where asked for: two calculations of one crystal by
               different settings may differ by more than two polymorphs.

What that costs was measured without any of them, on 20 formulas of relaxed hypothetical structures (7,182 pairs, 429
matches) and 300 formulas of the Materials Project and WBM (1,498 pairs, 112 matches): all matches were within 15 % of
volume, and 5 and 0 of them beyond 10 %; 17 % of either's were between other numbers of sites; 8 and 10 % were more than
0.05 eV/atom apart.

A match is the paper's `StructureMatcher().fit` (ltol 0.2, stol 0.3, 5 degrees): that is a generous criterion, which
takes a slightly distorted structure for its symmetric parent.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.store import Store
from fastcrystal.utils.files import whole_file

if TYPE_CHECKING:
    from fastcrystal.structure.match import MatchResult

#: pairs that are in memory, and with the workers, at once
_CHUNK = 20_000


@dataclass(frozen=True)
class PairSettings:
    """Settings of a search for near-duplicates.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    sample: int | None = None
    """Polymorph groups (formulas of two or more crystals) to draw. None: all."""
    per_group: int = 71
    """Crystals of a group to draw where it has more: pairs grow with the square."""
    volume: float | None = 0.15
    """Largest difference of the volumes per atom, |V_1 - V_2| / min(V_1, V_2). None: any."""
    energy: float | None = None
    """Largest difference of formation energies, eV/atom; an unknown one leaves no pair out. None: any."""
    same_sites: bool = False
    """Only pairs with the same number of sites."""
    seed: int = 0
    """Seed of the draws of groups and crystals."""
    time_limit: float = 10.0
    """Seconds for a pair."""

    def __post_init__(self) -> None:
        for name, least in (("sample", 1), ("per_group", 2), ("volume", 0), ("energy", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class Pairs:
    """Pairs of crystals to compare; P of them."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    """(P,) int64, as `first`: rows of the store, first < second; ascending."""
    n_groups: int
    """Polymorph groups they are from: all of the store, or the sample."""
    rows: NDArray[np.int64]
    """(n,) int64: crystals of these groups, those that have no pair too."""
    n_in_groups: int
    """Crystals of these groups, more than `rows` where `per_group` cut one down."""
    n_sites: int
    n_volume: int
    n_energy: int
    """Pairs left out because their sites (`n_sites`), then volumes, then energies differ."""


@dataclass(frozen=True)
class NearDuplicates:
    """Verdicts on P pairs."""

    store: Store
    pairs: Pairs
    result: MatchResult
    """In the order of the pairs."""

    @property
    def crystals(self) -> int:
        """Crystals that match another one."""
        fit = self.result.fit
        return len(np.union1d(self.pairs.first[fit], self.pairs.second[fit]))

    @property
    def superfluous(self) -> int:
        """Crystals that would go if one were kept of each set that matches link together, directly or in steps."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        rows, fit = self.pairs.rows, self.result.fit
        ends = np.searchsorted(rows, [self.pairs.first[fit], self.pairs.second[fit]])
        links = coo_array((np.ones(ends.shape[1], dtype=np.int8), tuple(ends)), shape=(len(rows), len(rows)))
        return len(rows) - int(connected_components(links, directed=False)[0])

    @property
    def share(self) -> float:
        """Share of the crystals compared that match another one; NaN for no crystals."""
        return self.crystals / len(self.pairs.rows) if len(self.pairs.rows) else float("nan")

    def __str__(self) -> str:
        p, counts = self.pairs, self.result.counts()
        if not p.n_groups:
            return "near-duplicates: none, no formula has two crystals"
        lost = ", ".join(f"{counts[kind]:,} {kind}" for kind in ("timeout", "error", "crashed") if counts[kind])
        apart = {"volumes": p.n_volume, "numbers of sites": p.n_sites, "energies": p.n_energy}
        left_out = ", ".join(f"{n:,} with other {what}" for what, n in apart.items() if n)
        cut = "" if len(p.rows) == p.n_in_groups else f" (of {p.n_in_groups:,})"
        lines = [
            f"near-duplicates: {self.crystals:,} of {len(p.rows):,}{cut} crystals in {p.n_groups:,} groups "
            f"({self.share:.1%}) match another one of their formula; {self.superfluous:,} are superfluous",
            f"pairs: {int(self.result.fit.sum()):,} of {len(p.first):,} compared match"
            + (f"; not compared: {left_out}" if left_out else "")
            + (f"; no verdict: {lost}" if lost else ""),
        ]
        return "\n".join(lines)

    def save(self, path: str | Path) -> Path:
        """Write all pairs with their verdicts as parquet, by way of a temporary file.

        Columns: row, id, sites, group and energy (eV/atom) of either crystal (first_*, second_*), formula,
        volume_ratio (per atom, second to first), fit (bool), rms (the other criterion's displacement in units of
        (V / n)^(1/3); null: no match), status ("ok", "timeout", "error: ...", "crashed: ...").
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        store, (first, second) = self.store, (self.pairs.first, self.pairs.second)
        volume = _volumes(store, self.pairs.rows) / store.num_sites[self.pairs.rows]
        at = {side: np.searchsorted(self.pairs.rows, rows) for side, rows in (("first", first), ("second", second))}
        ids = np.array(store.ids(self.pairs.rows), dtype=np.str_)
        columns: dict[str, Any] = {}
        for side, rows in (("first", first), ("second", second)):
            columns[f"{side}_row"] = rows
            columns[f"{side}_id"] = ids[at[side]]
            columns[f"{side}_sites"] = store.num_sites[rows]
            columns[f"{side}_group"] = store.space_group[rows]
            columns[f"{side}_energy"] = store.energy[rows]
        columns["formula"] = store.formulas[0][store.formulas[1][first]]
        columns["volume_ratio"] = volume[at["second"]] / volume[at["first"]]
        columns["fit"] = self.result.fit
        columns["rms"] = pa.array(self.result.rms, mask=~self.result.match_rms)
        columns["status"] = self.result.status
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            pq.write_table(pa.table(columns), partial)
        return path


def find_near_duplicates(
    store: Store, settings: PairSettings = PairSettings(), *, jobs: int | None = None, progress: bool = True
) -> NearDuplicates:
    """Compare the crystals of polymorph groups pair by pair.

    Parameters
    ----------
    store : Store
    settings : PairSettings
        Pairs to compare, and the time for one.
    jobs, progress
        As for `fastcrystal.structure.match.match_pairs`.

    Raises
    ------
    ValueError
        If `jobs` or the time limit is not positive.
    """
    from fastcrystal.structure.match import MatchResult, match_many

    pairs = choose_pairs(store, settings)
    results = []
    for a in range(0, len(pairs.first), _CHUNK):
        two = tuple(store.batch(rows[a : a + _CHUNK]) for rows in (pairs.first, pairs.second))
        results += match_many([(two[0], two[1])], jobs=jobs, time_limit=settings.time_limit, progress=progress)
    if not results:
        none = np.zeros(0)
        results = [MatchResult(none.astype(bool), none, [], none, none.astype(np.int64))]
    whole = MatchResult(
        np.concatenate([r.fit for r in results]),
        np.concatenate([r.rms for r in results]),
        [s for r in results for s in r.status],
        np.concatenate([r.seconds for r in results]),
        np.concatenate([r.num_sites for r in results]),
    )
    return NearDuplicates(store, pairs, whole)


def choose_pairs(store: Store, settings: PairSettings = PairSettings()) -> Pairs:
    """The pairs worth comparing."""
    sample, per_group = settings.sample, settings.per_group
    volume = np.inf if settings.volume is None else settings.volume
    energy = np.inf if settings.energy is None else settings.energy
    rng = np.random.default_rng(settings.seed)
    _, formula, size = np.unique(store.formula_key, return_inverse=True, return_counts=True)
    order = np.argsort(formula.reshape(-1), kind="stable")
    start = np.cumsum(size) - size
    groups = np.flatnonzero(size > 1)
    if sample is not None and sample < len(groups):
        groups = np.sort(rng.choice(groups, sample, replace=False))
    members = []
    for g in groups:
        rows = order[start[g] : start[g] + size[g]]
        members.append(rows if len(rows) <= per_group else np.sort(rng.choice(rows, per_group, replace=False)))
    none = np.zeros(0, dtype=np.int64)
    rows = np.concatenate([none, *members])
    owner = np.repeat(np.arange(len(members)), [len(m) for m in members])
    sites, energies = store.num_sites[rows], store.energy[rows].astype(np.float64)
    per_atom = _volumes(store, rows) / sites
    kept: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = [(none, none)]
    left_out = np.zeros(3, dtype=np.int64)
    for a, b in itertools.pairwise(np.searchsorted(owner, np.arange(len(members) + 1)).tolist()):
        i, j = (side + a for side in np.triu_indices(b - a, 1))
        smaller = np.minimum(per_atom[i], per_atom[j])
        # an unknown energy (NaN) is no reason to leave a pair out
        filters = (
            (sites[i] != sites[j]) & settings.same_sites,
            np.abs(per_atom[i] - per_atom[j]) > volume * smaller,
            np.abs(energies[i] - energies[j]) > energy,
        )
        near = np.ones(len(i), dtype=bool)
        for k, apart in enumerate(filters):
            left_out[k] += int((near & apart).sum())
            near &= ~apart
        kept.append((rows[i[near]], rows[j[near]]))
    first, second = (np.concatenate(side) for side in zip(*kept, strict=True))
    in_order = np.lexsort((second, first))
    return Pairs(
        first[in_order], second[in_order], len(groups), np.sort(rows), int(size[groups].sum()), *left_out.tolist()
    )


def _volumes(store: Store, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Volumes of the cells of some rows, (n,), cubic angstrom."""
    lattices = [store.columns(rows[a : a + _CHUNK], ["lattice"])["lattice"] for a in range(0, len(rows), _CHUNK)]
    volume: NDArray[np.float64] = np.abs(np.linalg.det(np.concatenate([np.zeros((0, 3, 3)), *lattices])))
    return volume
