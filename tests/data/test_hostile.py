"""Hostile files: mutated, huge, packed beyond belief, or lying about themselves. Each is read or rejected, quickly.

10,000 mutations: `python -m tests.factories.mutations 10000`.
"""

from __future__ import annotations

import gzip
import io
import resource
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fastcrystal.data.readers import open_source
from fastcrystal.data.readers.columns import read_energies
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.parsing import Outcome, Rules, process
from fastcrystal.data.readers.text import FREE_BYTES, Bomb, check_unpacking, open_unpacked
from fastcrystal.structure.crystal import Crystal
from tests.data.test_read import cif, poscar
from tests.factories.mutations import good_files, mutate, mutated, run
from tests.factories.shared_data import data_folder
from tests.factories.sources_made import write_csv


@contextmanager
def bounded(seconds: float, gigabytes: float) -> Iterator[None]:
    """Fail where the body takes longer, or raises the process's peak of memory by more."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    took = time.monotonic() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6  # kilobytes
    assert took < seconds, f"{took:.1f} s"
    assert grown < gigabytes, f"{grown:.2f} GB"


def outcomes(path: Path) -> list[Outcome]:
    return [process(Rules(), (0, item)) for item in open_source(path)]


def reason(text: str, kind: str = "x.cif", seconds: float = 10.0) -> str:
    """Why a text is no crystal."""
    name = "cif" if kind.endswith("cif") else "poscar"
    return process(Rules(seconds=seconds), (0, Entry("x", kind, name, text))).reason  # type: ignore[arg-type]


def test_mutated_files_are_read_or_rejected(tmp_path: Path) -> None:
    counts = run(300, tmp_path, seed=1)
    assert counts.files == 300
    assert counts.read > 20  # many a mutation does no harm
    assert counts.rejected > 100
    assert counts.slowest < 10


def test_mutations_of_real_files(tmp_path: Path) -> None:
    counts = run(100, tmp_path, data_folder() / "samples", seed=2)
    assert counts.read + counts.rejected + counts.refused >= 100
    assert counts.slowest < 10


def test_mutations_are_the_same_for_a_seed_and_do_mutate() -> None:
    assert list(mutated(40, 5, None)) == list(mutated(40, 5, None))
    good = dict(good_files(None))
    assert sum(good[name] != data for name, data in mutated(200, 3, None)) > 180
    import random

    assert mutate(b"", random.Random(0)) is not None


def test_a_cif_of_a_million_sites() -> None:
    """10 MB: the sites are counted before any is made."""
    header = cif([], None)
    text = header + "".join(f" C C{i} 0 0 {i * 1e-6:.6f} 1\n" for i in range(400_000))
    assert len(text) > 9_000_000
    with bounded(5, 0.5):
        assert reason(text) == "CIF lists more than 2000 sites in its cell"


def test_a_cif_of_a_million_operations() -> None:
    loop = "loop_\n _symmetry_equiv_pos_as_xyz\n"
    many = loop + "".join(f" 'x+{i}/1000001,y,z'\n" for i in range(200_000))
    text = cif().replace("loop_\n", many + "loop_\n", 1)
    with bounded(5, 0.5):
        assert reason(text) == "CIF lists more than 1000 symmetry operations"
    # 192 operations of a real cell on many sites multiply: the clock stops it, or the count of sites
    sites = [f"C {i / 97 % 1:.4f} {i / 31 % 1:.4f} {i / 13 % 1:.4f} 1" for i in range(1500)]
    text = cif(sites, None, 400.0).replace("'P 1'", "'F m -3 m'")
    with bounded(5, 0.5):
        assert reason(text, seconds=1) == "takes longer than 1 s"


def test_loops_after_the_sites_are_not_sites() -> None:
    """Reflections or displacements of a real CIF may have any number of lines."""
    reflections = "loop_\n _refln_index_h\n _refln_index_k\n" + " 1 2\n" * 50_000
    assert reason(cif() + reflections) == ""
    assert reason(reflections.replace("loop_", "data_x\nloop_", 1) + cif().replace("data_x\n", "")) == ""


@pytest.mark.parametrize("counts", ["1000000000 1", "1 1000000000", "1_000_000_000 1", "999999999999999999999 1"])
def test_a_poscar_of_a_billion_atoms(counts: str) -> None:
    with bounded(2, 0.2):
        assert "more than 2000 sites" in reason(poscar().replace("1 1", counts), "POSCAR")


def test_a_poscar_of_a_million_lines() -> None:
    with bounded(2, 0.2):
        assert "too many for 2000 sites" in reason(poscar() + "0 0 0\n" * 1_000_000, "POSCAR")


def test_cells_of_no_use_take_no_time() -> None:
    """Extreme numbers reach spglib's searches; thousands of sites without symmetry are not described in every way."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(9)] * 3), -1).reshape(-1, 3) / 9
    cases = {
        "noisy": Crystal(np.full(len(grid), 26), grid + rng.normal(size=grid.shape) * 0.002, np.eye(3) * 22.5),
        "long": Crystal(np.full(2, 26), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), np.diag([1e12, 4, 4])),
        "skew": Crystal(np.full(1, 26), np.zeros((1, 3)), np.array([[4, 0, 0], [4e5, 4, 0], [0, 4e5, 4]], dtype=float)),
        "far": Crystal(np.full(1, 26), np.full((1, 3), 1e300), np.eye(3) * 4),
        "heavy": Crystal(np.full(1, 10**6), np.zeros((1, 3)), np.eye(3) * 4),
    }
    for name, sites in cases.items():
        with bounded(25, 0.8):  # spglib's own searches cannot be interrupted
            outcome = process(Rules(seconds=1), (0, Entry(name, name, "arrays", sites)))
        assert outcome.reason or outcome.form is not None


def test_zip_bombs(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.cif", cif())
        for i in range(30):  # each alone is within the limit of a file
            archive.writestr(f"b{i:02}.cif", b"\n" * 19_000_000)
        archive.writestr("big.cif", b"\n" * 25_000_000)
    assert path.stat().st_size < 700_000
    with bounded(20, 0.6):
        found = list(open_source(path))
    assert isinstance(found[0], Entry)
    assert isinstance(found[-1], Reject)
    assert "archive damaged: unpacks to more than 200 times its" in found[-1].reason
    assert len(found) < 12


def test_tar_bombs(tmp_path: Path) -> None:
    zeros = tmp_path / "bomb.tar.gz"
    with tarfile.open(zeros, "w:gz") as archive:
        _add(archive, "a.cif", cif().encode())
        _add(archive, "padding.bin", b"\0" * 150_000_000)
        _add(archive, "b.cif", cif().encode())
    with bounded(20, 0.3):
        first, last = open_source(zeros)
    assert isinstance(first, Entry)
    assert isinstance(last, Reject)
    assert "archive damaged after 1 structures: unpacks to more than 200 times its" in last.reason
    named = tmp_path / "name.tar"
    with tarfile.open(named, "w", format=tarfile.GNU_FORMAT) as archive:
        _add(archive, "x" * 2_000_000 + ".cif", cif().encode())
    (only,) = open_source(named)
    assert isinstance(only, Reject)
    assert "archive damaged after 0 structures: a name of" in only.reason


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def test_a_tar_that_climbs_out_is_only_names(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "evil.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in ("../../climbed.cif", str(tmp_path / "absolute.cif"), "ok.cif"):
            _add(archive, name, cif().encode())
        for kind, name in ((tarfile.SYMTYPE, "link.cif"), (tarfile.LNKTYPE, "hard.cif"), (tarfile.FIFOTYPE, "f.cif")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    assert [o.id for o in outcomes(path)] == ["climbed", "absolute", "ok"]
    assert sorted(tmp_path.rglob("*")) == before


def test_csv_bombs(tmp_path: Path) -> None:
    header = b"id,cif\n"
    for name, body in (("lines", b"\n" * 300_000_000), ("line", b"a" * 300_000_000)):
        path = tmp_path / f"{name}.csv.gz"
        path.write_bytes(gzip.compress(header + body, 1))
        with bounded(20, 0.5):
            (only,) = open_source(path)
        assert isinstance(only, Reject)
        assert "damaged after row 0" in only.reason
        with pytest.raises(ValueError, match="is damaged after 0 energies"):
            read_energies(path, "id", "cif")


def test_a_field_of_thirty_megabytes_loses_only_its_row(tmp_path: Path) -> None:
    rows = [{"id": "a", "cif": cif()}, {"id": "b", "cif": "x\n" * 15_000_000}, {"id": "c", "cif": cif()}]
    path = write_csv(tmp_path / "t.csv", rows)
    with bounded(20, 0.5):
        found = outcomes(path)
    assert [o.id for o in found] == ["a", "b", "c"]
    assert [o.reason for o in found] == ["", "larger than 20 MB (30000000 characters)", ""]


def test_unpacking_is_counted() -> None:
    check_unpacking(FREE_BYTES, 1)
    check_unpacking(10 * FREE_BYTES, FREE_BYTES)
    with pytest.raises(Bomb, match="unpacks to more than 200 times its 1000 bytes"):
        check_unpacking(FREE_BYTES + 1, 1000)


def test_packed_files_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    import bz2
    import lzma

    for name, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("plain", bytes)):
        path = tmp_path / name
        path.write_bytes(pack(b"hello"))
        with open_unpacked(path) as stream:
            assert stream.read() == b"hello"
