"""What users do by mistake, and what must not be lost by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastcrystal.cli.app import main
from fastcrystal.discovery import pipeline
from fastcrystal.discovery.config import DiscoveryConfig
from fastcrystal.discovery.filtering import deduplicate
from fastcrystal.discovery.generate import usable
from fastcrystal.discovery.inputs import load_candidates, write_cifs
from fastcrystal.discovery.pipeline import discover
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.potentials import scale_of
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.stability.references import _is_final
from fastcrystal.utils.files import alone_in
from tests.factories.candidates import crystal, made
from tests.factories.text import unpadded

SPHERES = "tests.factories.calculators:spheres"
EMT = "ase.calculators.emt:EMT"


def config(tiny_run: Path, tmp_path: Path, **about: object) -> DiscoveryConfig:
    entries = tmp_path / "entries.csv"
    entries.write_text("formula,energy_per_atom\nNa,0.0\nCl,0.0\nNaCl,-0.5\n", encoding="utf-8")
    given = {"entries": str(entries), "scale": scale_of(SPHERES), "potential": SPHERES, "energies": 1, "device": "cpu"}
    return DiscoveryConfig(("NaCl",), str(tiny_run), groups=(225,), max_relax=1, steps=2, **{**given, **about})  # type: ignore[arg-type]


def test_options_are_checked_before_anything_is_done() -> None:
    for about, message in (
        ({"groups": (999,)}, r"space groups must be in 1\.\.230, got 999"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"hull_energies": {"NaCl": float("nan")}}, "the hull energy of NaCl must be a finite number"),
        ({"hull_energies": {"KCl": -1.0}}, "KCl has a hull energy, but is not asked for"),
    ):
        with pytest.raises(ValueError, match=message):
            DiscoveryConfig(("NaCl",), "x", **about)
    assert DiscoveryConfig(("NaCl",), "x", groups=(221, 225, 221)).groups == (221, 225)


def test_settings_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--set and --config reach every setting; unknown ones, and flags that became settings, say what to write."""

    def refused(*arguments: str) -> str:
        assert main(["discover", *arguments, "--out", str(tmp_path / "run")]) == 2
        return capsys.readouterr().err.strip()

    assert "nothing to discover: give at least one --formula" in refused()
    assert "did you mean max_relax?" in refused("--set", "max_relaks=3")
    assert "did you mean relax.steps?" in refused("--set", "relax.step=3")
    assert "relax.cell must be one of full, fixed, got 'half'" in refused("--set", "relax.cell=half")
    assert "ladder must be one of fine, coarse, deep, got 'steep'" in refused("--set", "ladders=steep")
    assert "--max-relax is a setting now: --set max_relax=100" in refused("--max-relax", "3")
    file = tmp_path / "mine.toml"
    file.write_text('formulas = ["NaCl"]\nenergies = 3\n[hull_energies]\nNaCl = -0.5\n[relax]\nsteps = 7\n')
    with pytest.raises(SystemExit) as done:
        main(["discover", "--config", str(file), "--set", "groups=225,221", "--set", "help"])
    assert done.value.code == 0
    shown = dict(line.split()[0].split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert (shown["formulas"], shown["energies"], shown["groups"], shown["relax.steps"]) == (
        "NaCl",
        "3",
        "225,221",
        "7",
    )
    assert not (tmp_path / "run").exists()


def test_a_run_of_before_goes_on(tiny_run: Path, tmp_path: Path) -> None:
    """request.json of 0.1 holds a part of the settings of relaxations, and no device."""
    run = tmp_path / "run"
    asked = config(tiny_run, tmp_path, relax=RelaxSettings(steps=3))
    said = discover(asked, run, jobs=1)
    request = json.loads((run / "request.json").read_text(encoding="utf-8"))
    del request["options"]["device"]
    request["options"]["relax"] = {"steps": 3}
    (run / "request.json").write_text(json.dumps(request), encoding="utf-8")
    other_devices = replace(asked, device="cpu", relax=RelaxSettings(steps=3, device="cuda"))
    assert discover(other_devices, run, jobs=1) == said


def test_a_run_that_failed_at_once_binds_nobody(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="potential must be one of"):
        discover(config(tiny_run, tmp_path, potential="magic"), run, jobs=1)
    assert not run.exists()
    with pytest.raises(ValueError, match=r"they cannot be compared; leave the entries out"):
        discover(config(tiny_run, tmp_path, scale="PBE"), run, jobs=1)
    assert not (run / "2_generated").exists()
    assert "NaCl" in discover(config(tiny_run, tmp_path), run, jobs=1)
    with pytest.raises(ValueError, match="begun with other settings"):
        discover(config(tiny_run, tmp_path, energies=2), run, jobs=1)


def test_a_retrained_model_is_noticed(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(pipeline, "generate", lambda *_, **__: [])
    asked = config(tiny_run, tmp_path)
    discover(asked, run, jobs=1)
    request = json.loads((run / "request.json").read_text(encoding="utf-8"))
    step, request["model"]["step"] = request["model"]["step"], 7
    (run / "request.json").write_text(json.dumps(request), encoding="utf-8")
    with pytest.raises(ValueError, match=f"at step 7, which is now at {step}: use another folder"):
        discover(asked, run, jobs=1)


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    at_work = pytest.raises(ValueError, match="another process is at work in")
    with alone_in(tmp_path / "run"), at_work, alone_in(tmp_path / "run"):
        raise AssertionError
    with alone_in(tmp_path / "run"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written \(.*\): use another folder"), alone_in(tmp_path / "file"):
        raise AssertionError


def test_a_formula_written_twice(tiny_run: Path) -> None:
    model = CrystalGenerator.from_run(str(tiny_run), "cpu")
    assert usable(["NaCl", "ClNa", "NaCl"], model) == (["NaCl"], {"ClNa": "the same atoms as NaCl"})
    cell = [[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]]
    salt = Candidate("a", "NaCl", crystal([11, 17], [[0.0] * 3, [0.5] * 3], cell))
    other = replace(salt, id="b", formula="Na2Cl2")
    assert not any(c.reason for c in deduplicate([salt, other], jobs=1, progress=False))


def test_scales_of_files_follow_their_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders with a module of one name are two potentials: their references must not be mixed."""
    scales: list[str] = []
    for text in ("def make(): ...\n", "def make(): return 1\n"):
        folder = tmp_path / str(len(scales))
        folder.mkdir()
        (folder / "my_calculator.py").write_text(text, encoding="utf-8")
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)
        scales.append(scale_of("my_calculator:make"))
    assert scales[0] != scales[1]
    assert all(s.startswith("my_calculator:make ") for s in scales)


def test_only_the_crystals_own_faults_are_final() -> None:
    cu = made("cu", "Cu", "fcc", 3.6)
    for what in ("the cell changed its volume 12-fold: it fell apart", "atoms fell into one another, to 0.01 of"):
        assert _is_final(cu.rejected(f"relaxation failed: {what}"), RelaxSettings())
    for what in ("failed: RuntimeError: CUDA out of memory", "died: exit code 9", "did not come back within 5 s"):
        assert not _is_final(cu.rejected(f"relaxation {what}"), RelaxSettings())


def test_hull_sees_what_was_relaxed_since(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, out, known = tmp_path / "mine", tmp_path / "out", tmp_path / "known.csv"
    known.write_text("formula,energy_per_atom\nCu,-0.5\nAu,-0.5\n", encoding="utf-8")
    place = ["hull", str(out), "--entries", str(known), "--scale", scale_of(EMT)]
    relax = ["relax", str(mine), "--out", str(out), "--potential", EMT, "--jobs", "1"]
    write_cifs([made("cu", "Cu", "fcc", 3.7)], mine)
    assert main(relax) == main(place) == 0
    write_cifs([made("cu", "Cu", "fcc", 3.7), made("au", "Au", "fcc", 4.1)], mine)
    assert main(relax) == 0
    with pytest.raises(ValueError, match="was relaxed further after it was placed"):
        load_candidates(out)
    capsys.readouterr()
    assert main(place) == 0
    assert "| Au |" in unpadded(capsys.readouterr().out)
    assert {c.id for c in load_candidates(out)[0]} == {"cu", "au"}


def test_stages_of_a_run_are_taken(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    discover(config(tiny_run, tmp_path), run, jobs=1)
    assert any("e_above_hull" in c.measured for c in load_candidates(run / "5_hull")[0])
    wanted = {c.id for c in load_candidates(run / "5_hull")[0]}
    assert wanted == {c.id for c in load_candidates(run)[0]} == {c.id for c in load_candidates(run / "6_ranking")[0]}
    assert all("e_above_hull" not in c.measured for c in load_candidates(run, unplaced=True)[0])
