"""All seven models and both tables at the smallest scale; the weights then serve the tests of each sampler."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.load import load_dataset
from fastcrystal.evaluation.runs import evaluate_run
from fastcrystal.experiments import reproduce as r
from fastcrystal.experiments.ablation import ablate, rows_of, settings
from fastcrystal.experiments.figures import make_figures
from fastcrystal.model.unet import Condition
from fastcrystal.process.samplers import SamplerName
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.testing import fill_zero_layers
from fastcrystal.training.checkpoint import read_settings
from fastcrystal.training.config import RunConfig
from fastcrystal.training.tasks import draw_test_set, make_splits
from fastcrystal.utils.settings import merge
from tests.factories.text import unpadded
from tests.factories.tiny import match_in_process, shrink_networks, tiny_settings


@pytest.fixture(scope="module")
def made(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Folder, settings and text of tables made in seconds."""
    out = tmp_path_factory.mktemp("tables") / "out"
    changes = {"data.max_test": 3, "regularization.condition_dropout": 0.2, "trainer.validate_every": 10}
    base = tiny_settings(tiny_npz, changes)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        shrink_networks(patch)
        match_in_process(patch)
        patch.setattr(r, "steps_per_second", lambda config: 1.0)
        torch.set_num_threads(1)
        text = r.reproduce(out, base, 0.5, jobs=1)
    torch.set_num_threads(threads)
    return out, base, text


def sampler_of(out: Path, name: str) -> tuple[CrystalGenerator, CrystalBatch, Any]:
    """A trained model, the conditions that it is evaluated on and, in modification, the initial structures."""
    sampler = CrystalGenerator.from_run(out / name, "cpu")
    asked = draw_test_set(make_splits(sampler.config), sampler.config)
    return sampler, asked.conditions, None if asked.initial is None else asked.initial.batch()


def test_both_tables_have_every_model_and_baseline(made: tuple[Path, dict[str, Any], str]) -> None:
    out, _, text = made
    assert [m.name for m in r.MODELS if m.task == "modify"] == ["modify-regression", "modify-cfm", "modify-ddpm"]
    assert all(m.title in text for m in r.MODELS)
    first, second = text.split("Table 2")
    assert first.startswith("Table 1: generation")
    assert "*copy" not in first
    assert "*copy" in second
    assert all(f"{100 * m.paper:.1f} %" in text for m in r.MODELS)
    assert all("*retrieval" in part and "*chance" in part for part in (first, second))
    assert (out / "tables.png").stat().st_size > 10_000
    values = json.loads((out / "tables.json").read_text(encoding="utf-8"))
    assert set(values["models"]) == {m.name for m in r.MODELS}
    assert values["steps"] == 4  # 0.8 of half a minute, six trainings, a step a second
    for m in r.MODELS:
        config = read_settings(out / (m.weights_of or m.name)).trainer
        assert (config.max_steps, config.seed) == (4, 42)
        assert values["models"][m.name]["n_test"] == 3
    assert text.startswith((out / "tables.md").read_text(encoding="utf-8").rstrip())


def test_what_is_done_is_kept(made: tuple[Path, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, base, text = made
    shrink_networks(monkeypatch)
    monkeypatch.setattr(r, "evaluate_model", lambda *a, **k: pytest.fail("evaluated again"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert r.reproduce(out, base, 0.5, jobs=1) == text
    with pytest.raises(ValueError, match="holds tables of other settings"):
        r.reproduce(out, base, 0.7)
    with pytest.raises(ValueError, match="budget must be a positive number of minutes, got 0"):
        r.reproduce(out, base, 0)


def test_modification_depends_on_the_initial_structure(made: tuple[Path, dict[str, Any], str]) -> None:
    for name in ("modify-regression", "modify-cfm", "modify-ddpm"):
        sampler, conditions, initial = sampler_of(made[0], name)
        fill_zero_layers(sampler.model)
        with torch.no_grad():  # four steps have barely opened the zero-initialized ways
            for p in sampler.model.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
        a, again = (sampler.sample(conditions, initial=initial, steps=2) for _ in range(2))
        moved = replace(initial, lattice=1.2 * initial.lattice)
        b = sampler.sample(conditions, initial=moved, steps=2)
        assert torch.equal(a.lattice, again.lattice)
        assert not torch.allclose(a.lattice, b.lattice, atol=1e-4), name


def test_one_palette_model_serves_all_queries(made: tuple[Path, dict[str, Any], str]) -> None:
    sampler, known, initial = sampler_of(made[0], "modify-ddpm")
    unknown = replace(known, energy=torch.full_like(known.energy, torch.nan), space_group=0 * known.space_group)
    for conditions in (known, unknown):
        for before in (initial, None):
            for guidance in (1.0, 2.0):
                out = sampler.sample(conditions, initial=before, steps=2, guidance=guidance)
                assert out.lattice.isfinite().all()


def test_samplers_of_flow_matching(made: tuple[Path, dict[str, Any], str]) -> None:
    sampler, conditions, _ = sampler_of(made[0], "cfm-uniform")
    names: tuple[SamplerName | None, ...] = (None, "euler", "heun", "midpoint", "rk4")
    lattices = [sampler.sample(conditions, steps=3, sampler=name).lattice for name in names]
    assert torch.equal(lattices[0], lattices[1])
    assert not torch.equal(lattices[1], lattices[2])
    guided = sampler.sample(conditions, steps=3, guidance=3.0).lattice
    assert not torch.equal(guided, lattices[0])
    barely = sampler.sample(conditions, steps=3, guidance=1.0 + 1e-7).lattice
    assert torch.allclose(barely, lattices[0], atol=1e-4)
    assert torch.equal(sampler.sample(conditions).lattice, sampler.sample(conditions, steps=2).lattice)  # as evaluated


def test_guidance_does_not_see_whole_turns(made: tuple[Path, dict[str, Any], str]) -> None:
    sampler, conditions, _ = sampler_of(made[0], "cfm-uniform")
    told, left_open = torch.full((1, 8, 3), -1.73), torch.full((1, 8, 3), -1.6)
    turn = torch.zeros(8, 3)
    turn[:-3] = sampler.scaling.site_scale

    class Network:
        """Says `told` or `left_open`, `turns` whole turns away."""

        turns = 0

        def condition(self, species: torch.Tensor, n: torch.Tensor, group: torch.Tensor, *rest: object) -> Condition:
            return Condition((group > 0).float()[:, None], species, n)

        def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: Condition) -> torch.Tensor:
            return told + self.turns * turn if cond.embedding[0, 0] else left_open

    network = Network()
    guided = CrystalGenerator(network, sampler.config, sampler.scaling)  # type: ignore[arg-type]
    ways = []
    for network.turns in (0, 1, -2):
        ways.append(guided._network(conditions, None, 1.5)(told, torch.zeros(1)))
    torch.testing.assert_close(ways[0], left_open + 1.5 * (told - left_open))
    torch.testing.assert_close(ways[1], ways[0])
    torch.testing.assert_close(ways[2], ways[0])


def test_ddpm_and_ddim_differ_in_their_noise(made: tuple[Path, dict[str, Any], str]) -> None:
    sampler, conditions, _ = sampler_of(made[0], "ddpm")
    with pytest.raises(ValueError, match=r"eta must be 0 where sampler is ddpm, got 0\.5: only ddim has an eta"):
        sampler.sample(conditions, eta=0.5)
    a, b, c = (sampler.sample(conditions, steps=4, sampler="ddim", eta=eta).lattice for eta in (None, 0.0, 1.0))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(a, sampler.sample(conditions, steps=4).lattice)
    with pytest.raises(ValueError, match=r"steps must be in 1\.\.1000, got 1001"):
        sampler.sample(conditions, steps=1001)
    with pytest.raises(ValueError, match="sampler ddim does not suit FlowMatching: take euler, midpoint, heun, rk4"):
        sampler_of(made[0], "cfm-uniform")[0].sample(conditions, sampler="ddim")


def test_what_a_model_cannot_do_is_one_line(made: tuple[Path, dict[str, Any], str], tiny_run: Path) -> None:
    out, _, _ = made
    generating, conditions, _ = sampler_of(tiny_run.parent, tiny_run.name)
    with pytest.raises(ValueError, match="guidance 2 needs a model trained with condition_dropout"):
        generating.sample(conditions, guidance=2.0)
    with pytest.raises(ValueError, match="space_group of crystal 0 is missing"):
        generating.sample(replace(conditions, space_group=0 * conditions.space_group))
    with pytest.raises(ValueError, match="energy of crystal 0 is missing"):
        generating.sample(replace(conditions, energy=torch.full_like(conditions.energy, torch.nan)))
    with pytest.raises(ValueError, match="this model generates: it takes no initial structure"):
        generating.sample(conditions, initial=conditions)
    modifying, conditions, initial = sampler_of(out, "modify-cfm")
    with pytest.raises(ValueError, match="this model modifies: give it initial structures"):
        modifying.sample(conditions)
    with pytest.raises(ValueError, match="species of the conditions, site by site"):
        modifying.sample(conditions, initial=replace(initial, species=initial.species.flip(1)))
    with pytest.raises(ValueError, match="sampler heun does not suit Regression: take direct"):
        sampler_of(out, "modify-regression")[0].sample(conditions, initial=initial, sampler="heun")
    with pytest.raises(ValueError, match=r"guidance 2\.0 needs a model trained without conditions, too: --set"):
        evaluate_run(tiny_run, {"sampling": {"guidance": 2.0}}, device="cpu", jobs=1)
    with pytest.raises(ValueError, match="sampler ddim does not suit FlowMatching: take euler, midpoint, heun, rk4"):
        evaluate_run(tiny_run, {"sampling": {"sampler": "ddim"}}, device="cpu", jobs=1)


def test_an_evaluated_run_holds_its_crystals(made: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    run = made[0] / "modify-cfm"
    generated, test, initial = (load_dataset(run / f"{name}.npz") for name in ("generated", "test", "initial"))
    assert len(generated) == len(test) == len(initial) == 3
    assert (initial.energy > test.energy).all()  # its own energies, not those of the targets
    assert (generated.energy == test.energy).all()
    said = str(make_figures([made[0] / "cfm-uniform"], "prototypes", tmp_path, dpi=40))
    assert (tmp_path / "coordinates.png").stat().st_size > 5_000
    assert "coordinates.png" in said


def test_speed_is_measured(tiny_npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_networks(monkeypatch)
    settings = tiny_settings(tiny_npz)
    assert 0.1 < r.steps_per_second(RunConfig.from_preset(**settings)) < 10_000
    with pytest.raises(ValueError, match="no data set at"):
        r.plan(tiny_npz.parent / "new", merge(settings, {"data": {"name": "gone.npz"}}), 1.0)
    assert not (tiny_npz.parent / "new").exists()


def test_ablation(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_networks(monkeypatch)
    match_in_process(monkeypatch)
    base = tiny_settings(tiny_npz, {"data.max_test": 2, "trainer.max_steps": 2})
    for task, algo in (("generate", "cfm"), ("modify", "ddpm")):
        recipe = {**base, "task": task, "algo": algo}
        for row in rows_of(task):  # every row is a setting that can train
            assert row == "recipe" or settings(recipe, row, 42) != RunConfig.from_preset(**recipe), row
    text = ablate(tmp_path, base, ("recipe", "padding not masked"), (1, 2), jobs=1)
    assert "| padding not masked | " in unpadded(text)
    assert "seeds 1, 2, 4 test crystals" in text
    with pytest.raises(ValueError, match=r"rows must be among recipe, .*; got 'wings'"):
        ablate(tmp_path, base, ("wings",))
    # results of other settings are not taken for these
    with pytest.raises(ValueError, match="was begun with max_steps 2, not 3: give another folder"):
        ablate(tmp_path, merge(base, {"trainer": {"max_steps": 3}}), ("recipe",), (1,), jobs=1)
    assert "1 test crystals" in ablate(tmp_path, merge(base, {"data": {"max_test": 1}}), ("recipe",), (1,), jobs=1)
