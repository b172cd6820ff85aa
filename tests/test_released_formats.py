"""What version 0.1 wrote still opens: run folders, data sets, candidates, and the two models in the package.

tests/fixtures/released/0.1/README.md says how the files were made. Nothing here may write to them.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields, make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pymatgen.core import Composition, Lattice, Structure

from fastcrystal import load_dataset
from fastcrystal.cli.app import main
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.training import config as run_config
from fastcrystal.training.checkpoint import CONFIG_FORMAT, read_settings
from fastcrystal.training.config import RunConfig
from fastcrystal.training.trainer import Trainer
from fastcrystal.utils.files import write_json
from fastcrystal.utils.settings import names
from tests.factories.pins import FIXTURES
from tests.factories.text import unpadded
from tests.factories.tiny import ROOT, match_in_process, tiny_config

RELEASED = FIXTURES / "released" / "0.1"
DATA = ("tiny.npz", "tiny.store")
RUNS = ("run-cfm", "run-ddpm-modify")
#: the energies of the candidates, as discovery recorded them
SCALE = "ase.calculators.lj:LennardJones 3.29.0"


#: names of the settings of format 3, and their places now
SETTINGS = {
    "data": "data.name",
    **{
        name: f"data.{name}"
        for name in (
            *("source", "max_sites", "min_polymorphs", "max_test", "lattice", "site_scale", "site_order"),
            *("mask_padding", "origin_shifts", "pairing", "pairs_per_group", "stream"),
        )
    },
    **{
        name: f"trainer.{name}"
        for name in (
            *("max_steps", "batch_size", "seed", "device", "precision", "checkpoint_every", "validate_every"),
            *("keep", "compile", "recompute"),
        )
    },
    **{name: f"optim.{name}" for name in ("lr", "warmup", "ema", "max_bad_steps", "gradient_hook")},
    **{name: f"sampling.{name}" for name in ("guidance", "eta", "clip")},
    "sampling_steps": "sampling.steps",
    "name_dropout": "regularization.element_dropout",
    "energy_noise": "regularization.energy_noise",
    "condition_dropout": "regularization.condition_dropout",
    "dropout": "model.dropout",
    "site_species": "model.site_species",
    "place_channels": "model.site_position_embedding",
    "site_waves": "model.fourier_features",
    "identity_embedding": "model.composition_embedding",
    "torus": "process.torus",
    "schedule": "process.schedule",
    "diffusion_steps": "process.training_steps",
    "lattice_weight": "process.lattice_weight",
}
RENAMED = {
    "place_channels": "site_position_embedding",
    "site_waves": "fourier_features",
    "identity_embedding": "composition_embedding",
}


def command(*arguments: str | Path) -> None:
    """Run a command in this process; it must succeed."""
    assert main([str(a) for a in arguments]) == 0


def read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz, read without this package."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def checkpoint(name: str) -> str | Path:
    """A run of the fixtures; a model of the package by its name."""
    return RELEASED / name if name in RUNS else name


@pytest.mark.parametrize(
    ("name", "formula", "group"), [("run-cfm", "KBr", 225), ("pretrained", "KBr", 225), ("pretrained", "TaB2", 191)]
)
def test_a_model_samples_the_formula(name: str, formula: str, group: int, tmp_path: Path) -> None:
    asked = ("--formula", formula, "--space-group", group, "--energy", "-1.5", "--formula-units", 1, "--count", 2)
    how = ("--steps", "1", "--seed", "0", "--device", "cpu", "--out", tmp_path / "out")
    command("sample", "--checkpoint", checkpoint(name), *map(str, asked), *how)
    files = sorted((tmp_path / "out").glob("*.cif"))
    assert [p.name for p in files] == ["000.cif", "001.cif"]
    for path in files:
        made = Structure.from_file(path)
        assert made.composition == Composition(formula)
        assert np.isfinite(made.frac_coords).all()
        assert made.lattice.matrix.shape == (3, 3)
        assert 0 < made.volume < 10_000


@pytest.mark.parametrize("name", ["run-ddpm-modify", "pretrained-modify"])
def test_a_model_modifies_a_crystal(name: str, tmp_path: Path) -> None:
    salt = tmp_path / "salt.cif"
    Structure.from_spacegroup(225, Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(str(salt))
    how = ("--potential", "none", "--jobs", "1", "--set", "count=2", "--set", "steps=1", "--set", "device=cpu")
    command("modify", salt, "--checkpoint", checkpoint(name), *how, "--out", tmp_path / "out")
    start, *proposals = read_lines(tmp_path / "out" / "candidates.jsonl")
    assert start["numbers"] == [11, 17]
    assert len(proposals) == 2
    for made in proposals:
        assert sorted(made["numbers"]) == [11, 17]
        assert np.shape(made["frac"]) == (2, 3)
        assert np.isfinite(made["frac"]).all()
        assert 0 < abs(np.linalg.det(made["lattice"])) < 10_000


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_evaluated_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the data set that it was trained on, whose test formulas are found again."""
    match_in_process(monkeypatch)
    monkeypatch.chdir(ROOT)  # the data set is recorded by a path from here
    run = Path(shutil.copytree(RELEASED / name, tmp_path / name))
    command("evaluate", "--checkpoint", run, "--set", "sampling.steps=2", "--device", "cpu", "--jobs", "1", "--json")
    again, before = json.loads(capsys.readouterr().out), read_json(RELEASED / name / "result.json")
    assert again.keys() == before.keys()
    same = ("n_test", "n_train", "n_no_template", "tolerances", "self_match", "step", "sampling", "settings")
    for key in (*same, "retrieval_fit", "retrieval_rms", "chance_fit", "chance_rms"):
        assert again[key] == before[key], key


@pytest.mark.parametrize("name", [*RUNS, "pretrained", "pretrained-modify"])
def test_the_settings_of_a_run_are_read(name: str) -> None:
    shipped = {"pretrained": "slim-prototypes", "pretrained-modify": "slim-prototypes-modify"}
    folder = ROOT / "fastcrystal" / "models" / shipped[name] if name in shipped else RELEASED / name
    recorded = read_json(folder / "config.json")
    assert recorded["format"] == 3
    model = CrystalGenerator.from_run(checkpoint(name), "cpu")
    now, before = dict(names(model.config)), recorded["train"]
    for name, path in SETTINGS.items():
        if path in now:  # else of another process, which this run does not have
            assert now[path] == before[name], name
    assert (model.config.task, model.config.algo, model.config.noise) == tuple(
        before[name] for name in ("task", "algo", "noise")
    )
    assert model.config.preset == before["preset"]
    assert model.config.predicts_data == (before["predict"] == "data")
    network = {RENAMED.get(name, name): value for name, value in recorded["model"].items()}
    assert model.config.model.to_dict() == network
    assert model.scaling.to_dict() == recorded["scaling"]
    assert model.length == recorded["length"]
    assert model.run["data"] == recorded["data"]
    (state,) = folder.glob("checkpoints/*/state.json")
    assert model.step == read_json(state)["step"]


@pytest.mark.parametrize("name", DATA)
def test_a_data_set_holds_what_it_held(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, pinned = load_dataset(RELEASED / name), arrays(RELEASED / "tiny.npz")
    assert len(data) == 60
    for key in ("formula", "natoms", "e_form", "sg", "lattice", "numbers", "frac"):
        field = {"natoms": "num_sites", "e_form": "energy", "sg": "space_group", "numbers": "species"}.get(key, key)
        np.testing.assert_array_equal(getattr(data, field), pinned[key], err_msg=key)
    assert data.lattice.dtype == data.frac.dtype == data.energy.dtype == np.float32
    for key in ("id", "source"):
        np.testing.assert_array_equal(data.labels[key], pinned[key])
    # written out once more, so that the file's own arrays are held to something
    assert data.labels["id"][:2].tolist() == ["LiF-rocksalt", "LiF-caesium"]
    assert data.species[:4].tolist() == [3, 9, 3, 9]
    assert data.space_group[:2].tolist() == [225, 221]
    assert data.frac[:2].tolist() == [[0, 0, 0], [0.5, 0.5, 0.5]]
    assert data.energy[:2].tolist() == pytest.approx([-1.185, -0.985])
    half = 2.616295099258423 / 2  # rock salt in its primitive cell
    assert data.lattice[0].tolist() == pytest.approx(
        np.array([[2 * half, 0, 0], [half, half * 3**0.5, 0], [half, half / 3**0.5, half * (8 / 3) ** 0.5]]), abs=1e-5
    )
    command("data", "info", RELEASED / name, "--json")
    info = json.loads(capsys.readouterr().out)
    assert info["n_structures"] == 60
    assert info["n_formulas"] == 30


def test_a_store_is_whole_and_can_be_exported(tmp_path: Path) -> None:
    command("data", "info", RELEASED / "tiny.store", "--verify")
    command("data", "export", RELEASED / "tiny.store", tmp_path / "out.npz")
    exported, pinned = arrays(tmp_path / "out.npz"), arrays(RELEASED / "tiny.npz")
    assert exported.keys() == pinned.keys()
    for key, value in pinned.items():
        np.testing.assert_array_equal(exported[key], value, err_msg=key)


def test_candidates_of_a_discovery_are_placed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The hull that they were placed on, once more: the same energies above it, and nothing else is lost."""
    stage = RELEASED / "discovery" / "5_hull" / "candidates.jsonl"
    entries = tmp_path / "entries.csv"
    entries.write_text("formula,energy_per_atom\nNa,0.0\nCl,0.0\nNaCl,-0.5\n", encoding="utf-8")
    command("hull", stage, "--entries", entries, "--scale", SCALE, "--out", tmp_path / "hull")
    assert "| NaCl | +492.8 |" in unpadded(capsys.readouterr().out)
    before, after = read_lines(stage), read_lines(tmp_path / "hull" / "placed.jsonl")
    assert [c["id"] for c in before] == [f"NaCl-coarse-0{k}-{g}" for k in (0, 1) for g in (225, 221)]
    assert after == before


def test_a_relaxed_candidate_without_a_request_is_read(tmp_path: Path) -> None:
    (before,) = read_lines(RELEASED / "relaxed" / "relaxed.jsonl")
    assert before["requested_energy"] is None
    entries = tmp_path / "entries.csv"
    entries.write_text("formula,energy_per_atom\nNa,0.0\nCl,0.0\n", encoding="utf-8")
    command("hull", RELEASED / "relaxed", "--entries", entries, "--scale", SCALE, "--out", tmp_path / "hull")
    (after,) = read_lines(tmp_path / "hull" / "placed.jsonl")
    placed = after.pop("measured")
    assert math.isclose(placed["e_above_hull"], before["measured"]["energy"])
    assert placed.items() >= before.pop("measured").items()
    assert after == before


@pytest.mark.parametrize("part", ["DataConfig", "UNetConfig", "OptimConfig", "TrainerConfig", "SamplingConfig"])
@pytest.mark.parametrize("name", ["pretrained", "pretrained-modify"])
def test_a_model_opens_when_a_setting_is_added(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that the model's config.json does not name has its default."""
    former = getattr(run_config, part)
    later = make_dataclass(part, [("added", int, 7), ("other", str, "as before")], bases=(former,), frozen=True)
    monkeypatch.setattr(run_config, part, later)
    model = CrystalGenerator.from_run(name, "cpu")
    (changed,) = (getattr(model.config, f.name) for f in fields(RunConfig) if _is(model.config, f.name, later))
    assert (changed.added, changed.other) == (7, "as before")
    again = RunConfig.from_dict(json.loads(json.dumps(model.config.to_dict())))
    assert again == model.config


def _is(config: RunConfig, name: str, kind: type) -> bool:
    return isinstance(getattr(config, name), kind)


@pytest.mark.parametrize(("name", "process"), [("pretrained", "FlowMatching"), ("pretrained-modify", "Diffusion")])
def test_a_model_opens_when_its_process_has_a_new_setting(
    name: str, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = make_dataclass(process, [("added", float, 0.5)], bases=(getattr(run_config, process),), frozen=True)
    monkeypatch.setattr(run_config, process, later)
    model = CrystalGenerator.from_run(name, "cpu")
    assert isinstance(model.process, later)
    assert model.process.added == 0.5  # type: ignore[union-attr]


@pytest.mark.usefixtures("tiny_network")
def test_a_run_of_format_3_goes_on(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match_in_process(monkeypatch)
    run = tmp_path / "run"
    Trainer(tiny_config(tiny_npz, {"trainer.max_steps": 4}), run).fit()
    now = read_json(run / "config.json")
    values, before = dict(names(read_settings(run))), {name: name for name in ("task", "preset")}
    flat = {name: values[path] for name, path in (SETTINGS | before).items() if path in values}
    flat |= {"algo": "cfm", "noise": "uniform", "predict": "data", "schedule": "squaredcos_cap_v2"}
    flat |= {"diffusion_steps": 1000, "length": 0}
    former = {new: old for old, new in RENAMED.items()}
    network = {former.get(name, name): value for name, value in now["config"]["model"].items()}
    rest = {name: value for name, value in now.items() if name not in ("format", "config")}
    write_json(run / "config.json", {"format": 3, **rest, "train": flat, "model": network, "length": 8})
    assert dict(names(read_settings(run))) == values
    command("train", "--resume", "--out", run, "--max-steps", "6", "--jobs", "1")
    assert read_json(run / "config.json")["format"] == CONFIG_FORMAT
    assert read_json(run / "result.json")["step"] == 6
    with pytest.raises(AssertionError):  # refused in one line
        command("train", "--resume", "--out", run, "--set", "optim.lr=1")
