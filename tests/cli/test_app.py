"""The commands end to end in fresh interpreters, as people run them: files, tables, one-line errors."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from pymatgen.core import Composition, Structure

from fastcrystal.cli.app import main
from fastcrystal.training.checkpoint import read_settings
from tests.factories.crystals import crystal
from tests.factories.tiny import ROOT, run_command

TRAIN = (
    "--max-steps",
    "2",
    "--batch-size",
    "4",
    "--set",
    "sampling.steps=1",
    "--set",
    "data.max_test=2",
    "--jobs",
    "1",
)


@pytest.fixture(scope="module")
def trained(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run by scripts/train.py, and what it said."""
    where = tmp_path_factory.mktemp("cli")
    done = run_command(
        "scripts/train.py", "--algo", "cfm", "--noise", "uniform", "--data", tiny_npz, "--out", "run", *TRAIN, cwd=where
    )
    assert done.returncode == 0, done.stderr
    return where / "run", done


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The line that ends in exit status 2; only a progress bar or a run's opening lines may come before it."""
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    line = str(captured.err.replace("\r", "\n").strip().splitlines()[-1])
    assert line.startswith(f"fastcrystal {arguments[0]}: ")
    return line


def test_train(trained: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, done = trained
    assert "match rate (fit)" in done.stdout
    assert "run folder: run" in done.stdout
    assert "no formula on two sides" in done.stderr
    wanted = {"config.json", "metrics.jsonl", "checkpoints", "curves.png", "result.json", "table.md"}
    assert wanted <= {p.name for p in run.iterdir()}
    config = read_settings(run)
    assert (config.trainer.max_steps, config.trainer.batch_size, config.noise) == (2, 4, "uniform")


def test_sample(trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    request = ("--formula", "KBr", "--space-group", "225", "--energy", "-1.9", "--count", "2", "--steps", "1")
    done = run_command("scripts/sample.py", "--checkpoint", trained[0], *request, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "KBr, space group 225, -1.9 eV/atom" in done.stdout
    folder = tmp_path / "samples" / "KBr_225"
    assert Structure.from_file(folder / "001.cif").composition == Composition("KBr")


def test_evaluate_prints_result_json(trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    settings = ("--set", "data.max_test=3", "--set", "sampling.steps=1")
    arguments = ("--checkpoint", trained[0], *settings, "--jobs", "1", "--json")
    done = run_command("scripts/evaluate.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((trained[0] / "result.json").read_text(encoding="utf-8"))
    assert result["n_test"] == 3
    assert {"match_rate_fit", "chance_fit", "retrieval_fit", "seconds_per_crystal"} <= result.keys()


def test_resume_and_refusal_to_overwrite(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
    tiny_npz: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, _ = trained
    again = ("train", "--data", tiny_npz, "--out", run, *TRAIN)
    assert "holds a run already: add --resume to go on" in refused(capsys, *again)
    assert "was trained with trainer.batch_size 4, not 8" in refused(capsys, *again, "--resume", "--batch-size", "8")
    assert main([str(a) for a in (*again, "--resume", "--max-steps", "3")]) == 0
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert json.loads((run / "result.json").read_text(encoding="utf-8"))["step"] == 3


def test_import_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cifs"
    folder.mkdir()
    for kind, *elements in (("rocksalt", "Na", "Cl"), ("caesium", "Cs", "Cl"), ("rutile", "Ti", "O")):
        crystal(kind, *elements).to(filename=str(folder / f"{kind}.cif"))
    (folder / "broken.cif").write_text("data_x\n_cell_length_a 4\n", encoding="utf-8")
    table = "id,energy\nrocksalt,-2.0\ncaesium,-1.5\nrutile,-3\nbroken,0\n"
    (tmp_path / "e.csv").write_text(table, encoding="utf-8")
    out = tmp_path / "mine.npz"
    imported = ["data", "import", str(folder), "--energies", str(tmp_path / "e.csv"), "--out", str(out), "--jobs", "1"]
    assert main(imported) == 0
    assert "3 structures in" in capsys.readouterr().out
    assert main(["data", "info", str(out), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["n_structures"] == 3
    assert info["n_rejected"] == 1
    assert info["n_formulas"] == 3
    assert info["sites"] == [2, 6]
    assert info["formation_energy_ev_per_atom"] == [-3.0, -1.5]
    assert info["elements"] == ["O", "Na", "Cl", "Ti", "Cs"]
    assert main(["data", "info", str(out)]) == 0
    assert "n structures" in capsys.readouterr().out


def test_one_line_errors(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ("sample", "--checkpoint", tiny_run, "--space-group", "225", "--energy", "-1", "--out", tmp_path / "o")
    assert "unknown element 'Xx'" in refused(capsys, *sample, "--formula", "Xx")
    assert "steps must be at least 1, got 0" in refused(capsys, *sample, "--formula", "NaCl", "--steps", "0")
    assert "energy must be a finite" in refused(capsys, *sample, "--formula", "NaCl", "--energy", "nan")
    assert "no data set at nothing.npz" in refused(capsys, "train", "--data", "nothing.npz", "--out", tmp_path / "r")
    assert "max_steps must be at least 1" in refused(capsys, "train", "--max-steps", "0")
    assert "--resume needs --out" in refused(capsys, "train", "--resume", "--data", "nothing.npz")
    assert "is not a run folder" in refused(capsys, "evaluate", "--checkpoint", tmp_path)
    assert "no data set at" in refused(capsys, "data", "info", "nothing.npz")
    assert "fastcrystal data: " in refused(capsys, "data", "import", tmp_path / "gone", "--out", tmp_path / "o.npz")
    assert not (tmp_path / "o").exists()


def test_settings_of_sampling(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ("sample", "--checkpoint", tiny_run, "--formula", "NaCl", "--out", tmp_path / "o")
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in (*sample, "--steps", "3", "--set", "sampler=heun", "--set", "help")])
    assert end.value.code == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"steps=3", "sampler=heun", "eta=0.0"} <= set(lines)
    assert "SamplingConfig has no field smpler: did you mean sampler?" in refused(capsys, *sample, "--set", "smpler=a")
    assert "got 'hen': did you mean heun?" in refused(capsys, *sample, "--set", "sampler=hen")
    assert "sampler ddim does not suit FlowMatching" in refused(capsys, *sample, "--set", "sampler=ddim")
    assert "--method is a setting now: --set sampler=midpoint" in refused(capsys, *sample, "--method", "heun")
    assert not (tmp_path / "o").exists()


def test_a_path_that_cannot_be_written_is_one_line(
    tiny_npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    line = refused(capsys, "train", "--data", tiny_npz, "--out", tmp_path / "file" / "run", *TRAIN)
    assert "file" in line


def test_status_and_streams_of_a_process(tmp_path: Path) -> None:
    done = run_command("scripts/sample.py", "--checkpoint", "x", "--space-group", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "--formula" in done.stderr
    wrong = ("--formula", "B", "--space-group", "300", "--energy", "0")
    done = run_command("scripts/sample.py", "--checkpoint", "x", *wrong, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "fastcrystal sample: space group must be in 1..230, got 300\n"


def test_help_and_version_are_light(tmp_path: Path) -> None:
    code = (
        "import sys; from fastcrystal.cli.app import build_parser; build_parser().format_help(); "
        "print(*[m for m in ('torch', 'pymatgen', 'ase', 'matplotlib') if m in sys.modules])"
    )
    done = run_command("-c", code, cwd=tmp_path)
    assert done.stdout.split() == []


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastcrystal.data.curation.info.describe", stop)
    assert main(["data", "info"]) == 130
    assert capsys.readouterr().err.strip() == "fastcrystal data: interrupted"


def test_every_script_is_a_command() -> None:
    for name, command in (
        ("train", "train"),
        ("sample", "sample"),
        ("evaluate", "evaluate"),
        ("figures", "figures"),
        ("prepare_data", "data"),
    ):
        assert f'script("{command}")' in (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8")
