"""Damaged files, made from good ones by seeded mutations, and what becomes of them: read, or rejected with a reason.

python -m tests.factories.mutations 10000        # prints counts, the slowest file and the peak of memory
"""

from __future__ import annotations

import csv
import io
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastcrystal.data.readers import open_source
from fastcrystal.data.readers.parsing import Rules, process
from fastcrystal.data.store.import_report import kind_of
from tests.factories.sources_made import CRYSTALS, aflow_row, rows

NUMBER = re.compile(rb"-?\d+(\.\d+)?")
VALUES = [
    b"nan",
    b"inf",
    b"-inf",
    b"1e300",
    b"-1e300",
    b"1e-300",
    b"-1",
    b"0",
    b"1e9",
    b"999999999999",
    b"",
    b"0x10",
    b"1_0",
]


@dataclass
class Counts:
    """Counts of the files by outcome.

    Attributes
    ----------
    files, read, rejected, refused : int
        Mutated files; structures read and rejected in them; files that were refused as a whole (such as a table
        without its column).
    slowest : float
        Seconds for the slowest structure, or to read the slowest file unparsed (one may hold a thousand structures).
    slowest_name : str
        Which it was.
    reasons : Counter
        Kinds of reasons.
    """

    files: int = 0
    read: int = 0
    rejected: int = 0
    refused: int = 0
    slowest: float = 0.0
    slowest_name: str = ""
    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        lines = [
            f"{self.files} files: {self.read} structures read, {self.rejected} rejected, {self.refused} files refused",
            f"slowest {self.slowest:.2f} s ({self.slowest_name}), peak memory {peak:.2f} GB",
        ]
        return "\n".join(lines + [f"{count:6} x {reason}" for reason, count in self.reasons.most_common(25)])


def good_files(samples: Path | None) -> list[tuple[str, bytes]]:
    """Name and content of good files: CIF without and with symmetry, POSCAR, csv of CIFs, the AFLOW csv; real ones too.

    Parameters
    ----------
    samples : Path or None
        The folder of real samples.
    """
    from pymatgen.io.cif import CifWriter

    files = []
    for id, (structure, _, _) in CRYSTALS.items():
        files.append((f"{id}.cif", structure.to(fmt="cif").encode()))
        files.append((f"{id}-symmetric.cif", str(CifWriter(structure, symprec=0.1)).encode()))
        files.append((f"POSCAR_{id}", structure.to(fmt="poscar").encode()))
    files.append(("table.csv", _csv(rows())))
    files.append(("aflow.csv", _csv([aflow_row(*given) for given in CRYSTALS.values()])))
    if samples is not None and samples.is_dir():
        for name in ("perov_5_val_300.csv", "mp_20_val_300.feather", "nrel_poscars_200.tar.gz"):
            if not (samples / name).is_file():
                continue
            for i, entry in enumerate(open_source(samples / name)):
                if i >= 60:
                    break
                text = getattr(entry, "payload", "")
                if i % 6 == 0 and isinstance(text, str):
                    files.append((f"POSCAR_{i}" if "poscar" in name else f"{name[:5]}-{i}.cif", text.encode()))
    return files


def _csv(table: list[dict[str, object]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to three mutations, one after another."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice((_flip, _truncate, _lines, _number, _swap, _insert))(data, rng)
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if out:
            out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _lines(data: bytes, rng: random.Random) -> bytes:
    """Lines deleted, repeated up to 200 times, or moved."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    i = rng.randrange(len(lines))
    taken = lines[i : i + rng.randint(1, 5)]
    change = rng.random()
    if change < 0.4:
        del lines[i : i + len(taken)]
    elif change < 0.8:
        lines[i:i] = taken * rng.choice((1, 2, 200))
    else:
        del lines[i : i + len(taken)]
        at = rng.randrange(len(lines) + 1)
        lines[at:at] = taken
    return b"".join(lines)


def _number(data: bytes, rng: random.Random) -> bytes:
    found = list(NUMBER.finditer(data))
    if not found:
        return data
    for match in sorted(rng.sample(found, min(len(found), rng.randint(1, 3))), key=lambda m: -m.start()):
        data = data[: match.start()] + rng.choice(VALUES) + data[match.end() :]
    return data


def _swap(data: bytes, rng: random.Random) -> bytes:
    """Two words of the file in each other's place."""
    words = list(re.finditer(rb"[^\s,]+", data))
    if len(words) < 2:
        return data
    a, b = sorted(rng.sample(words, 2), key=lambda m: m.start())
    return data[: a.start()] + b.group() + data[a.end() : b.start()] + a.group() + data[b.end() :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    piece = rng.choice(
        (b"\x00", b'"', b"'", b"loop_\n", b";\n", b"[" * 50, b"\xff\xfe", b"data_y\n", b",,,", b"#", b"_cell")
    )
    at = rng.randrange(len(data) + 1)
    return data[:at] + piece + data[at:]


def mutated(n: int, seed: int, samples: Path | None) -> Iterator[tuple[str, bytes]]:
    """n mutated files; the same for the same seed."""
    rng = random.Random(seed)
    files = good_files(samples)
    for i in range(n):
        name, data = files[i % len(files)]
        yield name, mutate(data, rng)


def run(n: int, folder: Path, samples: Path | None = None, seed: int = 0, rules: Rules | None = None) -> Counts:
    """Read n mutated files; raise AssertionError where a structure is neither read nor rejected with a reason.

    Parameters
    ----------
    n : int
    folder : Path
        Where one file at a time is written.
    samples : Path, optional
        The folder of real samples.
    seed : int
    rules : Rules, optional
    """
    counts, rules = Counts(), rules or Rules()
    for i, (name, data) in enumerate(mutated(n, seed, samples)):
        path = folder / name
        path.write_bytes(data)
        began = time.monotonic()
        counts.files += 1
        try:
            source = open_source(path)
            items = list(source)
        except ValueError as error:
            items, refusal = [], str(error)
            counts.refused += 1
        else:
            refusal = "none"
        assert refusal, f"{name}, mutation {i} of seed {seed}: no reason"
        assert "\n" not in refusal, f"{name}, mutation {i} of seed {seed}: {refusal!r}"
        times = [time.monotonic() - began]
        for item in items:
            began = time.monotonic()
            outcome = process(rules, (0, item))
            times.append(time.monotonic() - began)
            if outcome.form is None:
                assert outcome.reason, f"{name}, mutation {i} of seed {seed}: no reason"
                assert "\n" not in outcome.reason
                counts.rejected += 1
                counts.reasons[kind_of(outcome.reason)] += 1
            else:
                assert 1 <= len(outcome.form.crystal.species) <= 60
                counts.read += 1
        if max(times) > counts.slowest:
            counts.slowest, counts.slowest_name = max(times), f"{name}, mutation {i} of seed {seed}"
        path.unlink()
    return counts


def main() -> None:
    from tests.factories.shared_data import data_folder

    n, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(f"{run(n, Path(folder), data_folder() / 'samples', seed)}\n")


if __name__ == "__main__":
    main()
