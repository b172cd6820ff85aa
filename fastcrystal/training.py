"""The training loop (A.3): Adam, warm-up and cosine decay, averaged weights, checkpoints, one JSON line a step."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import fastcrystal
from fastcrystal.checkpoint import (
    latest_checkpoint,
    load_weights,
    read_config,
    read_state,
    read_tensors,
    save_checkpoint,
    write_config,
)
from fastcrystal.config import TrainConfig
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.model.dropping import drop_conditions
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.model.unet import CrystalUNet
from fastcrystal.model.unet_config import UNetConfig
from fastcrystal.process.build import live_rows, make_process
from fastcrystal.sampling import Generator, pick_device
from fastcrystal.tasks import Example, GenerateTask, ModifyTask, prepare

#: most crystals of a validation loss: one forward pass
VALIDATION_SIZE = 512
#: settings that may change when a run is resumed; "data" may move, but must hold the same crystals
FREE_ON_RESUME = frozenset(
    (
        *("data", "device", "precision", "max_steps", "max_test", "checkpoint_every", "validate_every"),
        *("sampling_steps", "guidance", "eta", "clip"),
    )
)


class Trainer:
    """One run: a folder, a model, and the loop between them.

    Parameters
    ----------
    config : TrainConfig
    run : Path
        Run folder; made if absent. A folder with checkpoints is resumed only by `resume`.
    """

    def __init__(self, config: TrainConfig, run: Path) -> None:
        self.config, self.run = config, run
        self.device = pick_device(config.device)
        self.prepared = prepare(config)
        self.scaling = self._fit_scaling()
        self.process = make_process(config, self.scaling)
        task = GenerateTask if config.task == "generate" else ModifyTask
        self.task = task(self.prepared, config, self.scaling, self.device)
        self.val = self.task.validation(VALIDATION_SIZE)
        torch.manual_seed(config.seed)
        self.model = CrystalUNet(self._model_config()).to(self.device)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimiser = torch.optim.Adam(
            self.model.parameters(), lr=config.lr, betas=(0.9, 0.999), eps=1e-8, fused=True
        )
        half = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": None}
        precision = config.precision
        if precision == "auto":
            precision = "fp16" if self.device.type == "cuda" else "fp32"
        self.half = half[precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step = 0

    def _fit_scaling(self) -> LatticeScaling:
        if self.config.lattice == "raw":
            return LatticeScaling()
        train = self.prepared.data.select(self.prepared.split.train).batch()
        return LatticeScaling.fit(train, self.config.site_scale, 0.5, self.config.lattice)  # type: ignore[arg-type]

    def _model_config(self) -> UNetConfig:
        energy = torch.from_numpy(self.prepared.data.e_form[self.prepared.split.train])
        scale: dict[str, Any] = dict(zip(("energy_mean", "energy_std"), _moments(energy), strict=True))
        if isinstance(self.task, ModifyTask):
            what = "change" if self.config.conditions_on_initial else "energy"
            scale |= dict(zip((f"{what}_mean", f"{what}_std"), _moments(self.task.changes()), strict=True))
        return self.config.network(length=self.prepared.length, site_period=self.scaling.site_scale, **scale)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then cosine decay to zero at the last step."""
        c = self.config
        warmup = min(c.warmup, c.max_steps // 2)
        if step < warmup:
            return c.lr * (step + 1) / warmup
        return c.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, c.max_steps - warmup)))

    def fit(self) -> None:
        """Train to `max_steps`; writes config.json, metrics.jsonl, TensorBoard events and checkpoints."""
        from torch.utils.tensorboard import SummaryWriter

        self.run.mkdir(parents=True, exist_ok=True)
        write_config(self.run, self.description())
        # of a run that stopped before its first checkpoint, or after its last
        _cut_metrics(self.run / "metrics.jsonl", self.step)
        board = SummaryWriter(str(self.run / "tensorboard"), purge_step=self.step)
        bar = tqdm(
            total=self.config.max_steps * self.config.batch_size,
            initial=self.step * self.config.batch_size,
            desc="training",
            unit="crystal",
            unit_scale=True,
            file=sys.stderr,
            mininterval=1.0,
        )
        with (self.run / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
            try:
                while self.step < self.config.max_steps:
                    lr = self.learning_rate(self.step)
                    loss = self.train_step(lr)
                    self.step += 1
                    record = {"step": self.step, "loss": loss, "lr": lr}
                    last = self.step == self.config.max_steps
                    if self.val is not None and (self.step % self.config.validate_every == 0 or last):
                        record["val_loss"] = self.validate(self.val)
                        bar.set_postfix(loss=f"{loss:.3f}", val=f"{record['val_loss']:.3f}", refresh=False)
                    metrics.write(json.dumps(record) + "\n")
                    for name in ("loss", "val_loss", "lr"):
                        if name in record:
                            board.add_scalar(name, record[name], self.step)
                    if self.step % self.config.checkpoint_every == 0 or last:
                        metrics.flush()
                        self.save()
                    bar.update(self.config.batch_size)
            finally:
                bar.close()
                board.close()

    def train_step(self, lr: float) -> float:
        """One optimiser step; returns the mean loss of the batch.

        Raises
        ------
        FloatingPointError
            If the loss is not finite.
        """
        example = self.task.batch(self.step, self.generator)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            loss = self._loss(self.model, example, self.generator)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimiser)
        self.scaler.update()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss is {value} at step {self.step + 1}: lower --lr, or resume from the last checkpoint"
            )
        # a young average forgets faster, so that a short run does not carry its initial weights
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            own = self.model.state_dict()
            torch._foreach_lerp_([self.average[k] for k in own], list(own.values()), 1 - decay)
        return value

    @torch.no_grad()
    def validate(self, example: Example) -> float:
        """Loss of the averaged weights, with the same noise every time and no condition left open."""
        generator = torch.Generator().manual_seed(self.config.seed)
        averaged = _Averaged(self.model, self.average)
        self.model.eval()
        loss = self._loss(averaged, example, generator, regularise=False)
        self.model.train()
        return float(loss)

    def _loss(
        self,
        model: CrystalUNet | _Averaged,
        example: Example,
        generator: torch.Generator,
        regularise: bool = True,
    ) -> Tensor:
        crystals, config = example.crystals, self.config
        nameless = None
        if regularise and config.energy_noise:
            noise = torch.randn(len(crystals), generator=generator).to(self.device)
            crystals = replace(crystals, energy=crystals.energy + config.energy_noise * noise)
        if regularise and config.name_dropout:
            nameless = (torch.rand(len(crystals), generator=generator) < config.name_dropout).to(self.device)
        told = example.initial if config.conditions_on_initial else None
        has_initial = None if told is None else torch.ones_like(crystals.num_sites, dtype=torch.bool)
        rate = config.condition_dropout if regularise else 0.0
        group, energy, has_initial = drop_conditions(
            crystals.space_group, crystals.energy, has_initial, rate, generator
        )
        if has_initial is not None and example.initial_energy is not None:
            # without its initial structure a row is told the formation energy instead of the change
            energy = torch.where(has_initial, energy, energy + example.initial_energy)
        cond = model.condition(crystals.species, crystals.num_sites, group, energy, told, has_initial, nameless)
        rows = live_rows(self.config, crystals.num_sites, self.prepared.length)
        cond = cond._replace(num_sites=rows)
        return self.process.loss(model, example.x_1, rows, cond, generator, example.initial)

    def description(self) -> dict[str, Any]:
        """What config.json says of the run."""
        data, split = self.prepared.data, self.prepared.split
        return {
            "fastcrystal": fastcrystal.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {self.device}",
            "train": self.config.to_dict(),
            "model": self.model.config.to_dict(),
            "scaling": self.scaling.to_dict(),
            "length": self.prepared.length,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "data": {
                "name": data.name,
                "sha256": data.fingerprint(),
                "n_train": len(split.train),
                "n_val": len(split.val),
                "n_test": len(split.test),
                "left_out": self.prepared.left_out,
                "formula_units": formula_units(data.select(split.train)),
            },
        }

    def save(self) -> Path:
        """Write a checkpoint of the present step."""
        moments = self.optimiser.state_dict()["state"]
        optimiser = {f"{i}.{k}": torch.as_tensor(v) for i, entry in moments.items() for k, v in entry.items()}
        if self.device.type == "cuda":
            optimiser["cuda"] = torch.cuda.get_rng_state(self.device)
        tensors = {
            "model": self.model.state_dict(),
            "ema": self.average,
            "optimizer": {**optimiser, "generator": self.generator.get_state(), "torch": torch.get_rng_state()},
        }
        return save_checkpoint(self.run, self.step, tensors, {"scaler": self.scaler.state_dict()})

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run folder.

        Raises
        ------
        ValueError
            If there is none, or it belongs to other settings; names the first that differs.
        """
        before, now = read_config(self.run), json.loads(json.dumps(self.description()))
        for name, value in now["train"].items():
            was = before["train"].get(name)
            if name not in FREE_ON_RESUME and was != value:
                raise ValueError(f"{self.run} was trained with {name} {was}, not {value}: resume with its own settings")
        for name in ("model", "scaling", "length", "data"):
            if before[name] != now[name]:
                raise ValueError(f"{self.run} was trained with another {name}: resume with its config.json's settings")
        folder = latest_checkpoint(self.run)
        state = read_state(folder)
        load_weights(self.model, read_tensors(folder, "model", self.device), folder)
        average = read_tensors(folder, "ema", self.device)
        self.average = {k: average[k] for k in self.average}
        saved = read_tensors(folder, "optimizer")
        self.generator.set_state(saved.pop("generator"))
        torch.set_rng_state(saved.pop("torch"))
        if "cuda" in saved:
            state_of_device = saved.pop("cuda")
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(state_of_device, self.device)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.items():
            index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]

    def sampler(self) -> Generator:
        """The averaged weights, ready to generate."""
        model = CrystalUNet(self.model.config).to(self.device).eval()
        model.load_state_dict(self.average)
        out = Generator(model, self.config, self.scaling, self.prepared.length)
        out.run, out.step = self.description(), self.step
        return out


class _Averaged:
    """A model with other weights in its place, for a validation that leaves the weights alone."""

    def __init__(self, model: CrystalUNet, weights: dict[str, Tensor]) -> None:
        self.model, self.weights = model, {f"model.{k}": v for k, v in weights.items()}

    def __call__(self, *args: Any) -> Any:
        return self._call("forward", *args)

    def condition(self, *args: Any) -> Any:
        return self._call("condition", *args)

    def _call(self, method: str, *args: Any) -> Any:
        from torch.func import functional_call

        return functional_call(_Method(self.model, method), self.weights, args)


class _Method(torch.nn.Module):
    """Makes any method of a model reachable for functional_call."""

    def __init__(self, model: CrystalUNet, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *args: Any) -> Any:
        return getattr(self.model, self.method)(*args)


def _moments(values: Tensor) -> tuple[float, float]:
    """Mean and standard deviation; a constant has the deviation 1e-3, so that it can be divided by."""
    values = values.double()
    return float(values.mean()), max(float(values.std(correction=0)), 1e-3)


def formula_units(data: CrystalDataset) -> dict[str, dict[str, int]]:
    """How many formula units the cells have, by "anonymous formula:space group": {"AB2:191": {"1": 12}}."""
    out: dict[str, dict[str, int]] = {}
    offsets = data.offsets
    for i in range(len(data)):
        anonymous, units = anonymise(data.numbers[offsets[i] : offsets[i + 1]].tolist())
        counts = out.setdefault(f"{anonymous}:{data.sg[i]}", {})
        counts[str(units)] = counts.get(str(units), 0) + 1
    return out


def anonymise(species: list[int]) -> tuple[str, int]:
    """Reduced anonymous formula and number of formula units: [5, 5, 5, 5, 73, 73] -> ("AB2", 2)."""
    amounts = sorted(species.count(z) for z in set(species))
    units = math.gcd(*amounts)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    reduced = [a // units for a in amounts]
    return "".join(f"{letters[i]}{n if n > 1 else ''}" for i, n in enumerate(reduced)), units


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the lines after `step`, which training is about to write again."""
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def new_run_folder(config: TrainConfig, root: Path = Path("runs")) -> Path:
    """A folder name that says what the run is and when it began."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    what = [config.algo, config.noise if config.task == "generate" else config.task, Path(config.data).stem]
    return root / "-".join([*what, config.preset, stamp])
