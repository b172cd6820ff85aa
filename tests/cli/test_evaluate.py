"""`fastcrystal evaluate PATH`: what is printed where, what is left behind, and one line for what a user can mend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastcrystal.cli.app import main
from tests.factories.crystal_files import salts, write
from tests.factories.tiny import run_command


@pytest.mark.slow
def test_json_is_all_of_stdout(tmp_path: Path) -> None:
    write(tmp_path / "made", salts())
    write(tmp_path / "true", {k: v for k, v in salts().items() if k in "ac"})
    done = run_command("-m", "fastcrystal.cli.app", "evaluate", "made", "--reference", "true", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"match_rate_fit", "match_rate_rms", "n_structures", "n_rejected"} <= result.keys()
    assert result["match_rate_fit"] == 1
    assert result == json.loads((tmp_path / "evaluations" / "made" / "result.json").read_text(encoding="utf-8"))


def test_a_folder_of_sample(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `fastcrystal sample` leaves says what was asked for."""
    folder = tmp_path / "NaCl.225"
    request = ("--formula", "NaCl", "--space-group", "225", "--energy", "-1", "--count", "2", "--steps", "2")
    assert main(["sample", "--checkpoint", str(tiny_run), *request, "--device", "cpu", "--out", str(folder)]) == 0
    out = tmp_path / "o"
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--reference", "prototypes", "--jobs", "2", "--out", str(out)]) == 0
    table = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["n_structures"] + result["n_rejected"] == 2
    assert result["settings"]["table"] == str(folder / "crystals.csv")
    assert result["requested"]["n_requested_group"] == result["n_structures"]
    assert result["n_reference"] == 2038
    assert "match" in table
    assert f"written to {out}" in table


def test_results_of_other_crystals_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("one/m.v1", "two/m.v1", "one/m.v2"):
        write(tmp_path / folder, {"a": salts()["a"]})
    assert main(["evaluate", "one/m.v1", "--jobs", "1"]) == 0
    assert main(["evaluate", "one/m.v2", "--jobs", "1"]) == 0
    assert main(["evaluate", "one/m.v1", "--jobs", "1"]) == 0
    assert {p.name for p in (tmp_path / "evaluations").iterdir()} == {"m.v1", "m.v2"}
    capsys.readouterr()
    assert "evaluations/m.v1 has the evaluation of one/m.v1: give --out" in refused(capsys, "two/m.v1")
    assert "cannot be written" in refused(capsys, "two/m.v1", "--out", "one/m.v1/a.cif/x")


@pytest.mark.slow
def test_two_processes_share_one_evaluation(tmp_path: Path) -> None:
    """What leaves the result holds its folder; the other must not be told that somebody is at work there."""
    write(tmp_path / "made", {k: v for k, v in salts().items() if k in "ac"})
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastcrystal.cli.app")
    done = run_command(*command, "evaluate", "made", "--jobs", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["n_structures"] == 2
    assert (tmp_path / "evaluations" / "made" / "result.json").is_file()
    refused_too = run_command(*command, "evaluate", "made", "--potential", "ase.calculators.emt:EMT", cwd=tmp_path)
    assert refused_too.returncode != 0
    assert "--potential is for one process, got 2: leave out torchrun" in refused_too.stderr


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.strip()
    assert line.startswith("fastcrystal evaluate: ")
    assert "\n" not in line
    return line


def test_one_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "no CIF or POSCAR files in" in refused(capsys, tmp_path / "empty")
    assert "no file or folder at" in refused(capsys, tmp_path / "gone")
    assert "give a folder or file of crystals, or --checkpoint RUN, got neither" in refused(capsys)
    assert "or --checkpoint RUN, not both" in refused(capsys, tmp_path, "--checkpoint", tmp_path)
    assert "--device is for --checkpoint RUN" in refused(capsys, tmp_path, "--device", "cpu")
    assert "--pairwise is for a path of crystals" in refused(capsys, "--checkpoint", "x", "--pairwise")
    gone = refused(capsys, tmp_path, "--time-limit", "3")
    assert "--time-limit is a setting now: --set time_limit=30" in gone
    assert "has no field time_limits: did you mean time_limit?" in refused(capsys, tmp_path, "--set", "time_limits=3")
    made = write(tmp_path / "made", {"a": salts()["a"]})
    assert "time_limit must be a positive" in refused(capsys, made, "--set", "time_limit=0", "--out", tmp_path / "o")
    assert "no file or folder at" in refused(capsys, made, "--reference", tmp_path / "gone")
    assert not (tmp_path / "o").exists()


def test_settings_are_listed(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, line in ((["x"], "potential.per_formula=4"), (["--checkpoint", str(tiny_run)], "sampling.steps=2")):
        with pytest.raises(SystemExit):
            main(["evaluate", *arguments, "--set", "help"])
        assert line in capsys.readouterr().out
