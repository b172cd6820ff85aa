"""`data info` of stores and views: counts known by hand, where they are from, and checksums."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastcrystal.cli.app import main
from fastcrystal.data.curation.info import describe
from fastcrystal.data.store import Store
from tests.factories.made_up import make
from tests.factories.made_up_store import store_of, with_groups


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """9 NaCl and 2 MgO, two collections, one disagreement, three rejects."""
    one = with_groups(make([((11, 17), np.linspace(-2, 0, 9).tolist())]), [225] * 9)
    other = make([((12, 12, 8, 8), [float("nan")] * 2)])
    return store_of(tmp_path / "mine.store", one, other, declared=[225] * 7 + [0, 221], rejected=3)


def as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["data", "info", str(path), "--json"]) == 0
    values: dict[str, object] = json.loads(capsys.readouterr().out)
    return values


def test_a_store(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    values = as_json(store.path, capsys)
    assert values["n_structures"] == 11
    assert values["n_rejected"] == 3
    assert values["n_formulas"] == 2
    assert values["groups_of_7_or_more"] == 1
    assert values["sites"] == [2, 4]
    assert values["formation_energy_ev_per_atom"] == [-2.0, 0.0]
    assert values["n_without_energy"] == 2
    assert values["elements"] == ["O", "Na", "Mg", "Cl"]
    assert values["labels"] == {"set0": 9, "set1": 2}
    assert values["share_that_differs"] == 0.1
    assert values["settings"] == {"symprec": 0.1}
    assert values["content_hash"] == store.fingerprint()
    sources = values["sources"]
    assert isinstance(sources, list)
    assert [s["licence"] for s in sources] == ["CC0", "CC0"]
    files = sum(p.stat().st_size for p in store.path.glob("parts/*/*.npy"))
    assert values["bytes_per_crystal"] == round(files / 11, 1)


def test_a_store_in_words(store: Store) -> None:
    text = describe(store.path)
    assert "set0: 9 crystals, 3 rejected, licence CC0" in text
    assert "declared and computed groups differ  1 of 10 (10.00%)" in text
    assert "checksums" not in text


def test_a_view_and_its_curation(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = store.where(sites=(4, 4)).save_view(tmp_path / "plain")
    values = as_json(plain, capsys)
    assert (values["n_structures"], values["n_structures_in_store"], values["n_rejected"]) == (2, 11, 3)
    assert values["view_of"] == str(store.path.resolve())
    assert values["formation_energy_ev_per_atom"] is None
    assert values["labels"] == {"set1": 2}
    assert "curation" not in values
    curated = ["data", "curate", str(store.path), "--out", str(tmp_path / "v"), "--set", "sites=2,9"]
    assert main([*curated, "--set", "min_share=0"]) == 0
    capsys.readouterr()
    assert "polymorphs 7..71: 2 gone" in describe(tmp_path / "v")
    assert as_json(tmp_path / "v", capsys)["n_structures"] == 9


def test_verify(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = store.select([1, 2]).save_view(tmp_path / "v")
    assert main(["data", "info", str(store.path), "--verify"]) == 0
    assert "checksums" in capsys.readouterr().out
    # as in a store too large to be verified whenever it is opened
    monkeypatch.setattr("fastcrystal.data.store.store.VERIFIED_AT_ONCE", 0)
    (array,) = store.path.glob("parts/*/e_form.npy")
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    assert main(["data", "info", str(store.path)]) == 0
    for path in (store.path, view):
        capsys.readouterr()
        assert main(["data", "info", str(path), "--verify"]) == 2
        assert "array e_form does not match its checksum" in capsys.readouterr().err


def test_a_folder_that_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", str(tmp_path)]) == 2
    assert "is no store: it has no manifest.json" in capsys.readouterr().err
