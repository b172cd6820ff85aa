"""Damaged stores: refused in one line that names the array, whatever was done to them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.store import format as store_format
from fastcrystal.data.store import open_store
from fastcrystal.data.store.format import array_types
from tests.data.test_store import data as data
from tests.data.test_store import same, write


@pytest.mark.parametrize("array", list(array_types()))
def test_damage_has_the_arrays_name(array: str, data: CrystalDataset, tmp_path: Path) -> None:
    write(tmp_path / "s", data)
    path = next((tmp_path / "s" / "parts").iterdir()) / f"{array}.npy"
    whole = path.read_bytes()
    for damaged, why in ((whole[:-1], "has .* bytes instead of"), (b"", "has 0 bytes"), (None, "cannot be read")):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"damaged, array {array} {why}"):
            open_store(tmp_path / "s")
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match=f"damaged, array {array}|array {array} of part .* is not ascending"):
        open_store(tmp_path / "s")


def test_a_large_store_is_verified_where_asked(
    data: CrystalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastcrystal.data.store.store.VERIFIED_AT_ONCE", 0)
    write(tmp_path / "s", data)
    path = next((tmp_path / "s" / "parts").iterdir()) / "frac.npy"
    flipped = bytearray(path.read_bytes())
    flipped[-1] ^= 1
    path.write_bytes(bytes(flipped))
    store = open_store(tmp_path / "s")
    for check in (store.verify, lambda: open_store(tmp_path / "s", verify=True)):
        with pytest.raises(ValueError, match="array frac does not match its checksum"):
            check()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": "zip", "version": 1}', "has format 'zip'"),
        ('{"format": "fastcrystal-store", "version": 9}', "has store version 9; this fastcrystal reads version 1"),
    ],
)
def test_bad_manifests(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=why):
        open_store(tmp_path)


def test_a_manifest_that_lies(data: CrystalDataset, tmp_path: Path) -> None:
    write(tmp_path / "s", data)
    path = tmp_path / "s" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "n_crystals": 299}))
    with pytest.raises(ValueError, match="does not match its own checksum"):
        open_store(tmp_path / "s")
    store_format.write_manifest(tmp_path / "s", {**manifest, "n_crystals": 299})
    with pytest.raises(ValueError, match="counts or its content hash"):
        open_store(tmp_path / "s")
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        open_store(tmp_path)


def test_a_store_cut_short_while_open(data: CrystalDataset, tmp_path: Path) -> None:
    """A memory map would end the process here."""
    write(tmp_path / "s", data)
    store = open_store(tmp_path / "s")
    path = next((tmp_path / "s" / "parts").iterdir()) / "frac.npy"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="array frac has become shorter"):
        store.batch()


def test_hostile_stores(data: CrystalDataset, tmp_path: Path) -> None:
    """Bytes flipped, files cut, exchanged or made longer, manifest included: refused in one line, or as it was."""
    write(tmp_path / "s", data)
    files = sorted(p for p in (tmp_path / "s").rglob("*") if p.suffix in (".npy", ".json"))
    whole = {p: p.read_bytes() for p in files}
    rng = np.random.default_rng(5)
    refused = 0
    for attempt in range(200):
        path = files[int(rng.integers(len(files)))] if attempt % 2 else tmp_path / "s" / "manifest.json"
        content = bytearray(whole[path])
        how = int(rng.integers(4))
        if how == 0:
            for place in rng.integers(len(content), size=int(rng.integers(1, 9))):
                content[place] = int(rng.integers(256))
        elif how == 1:
            del content[int(rng.integers(len(content))) :]
        elif how == 2:
            content += bytes(rng.integers(256, size=40, dtype=np.uint8))
        else:
            content = bytearray(whole[files[int(rng.integers(len(files)))]])
        path.write_bytes(bytes(content))
        if bytes(content) == whole[path]:
            assert same(open_store(tmp_path / "s").read(), data)
        else:
            refused += 1
            with pytest.raises(ValueError, match=r"^[^\n]*(damaged|has format|has store version)[^\n]*$"):
                open_store(tmp_path / "s")
        path.write_bytes(whole[path])
    assert refused > 100
