"""The training loop (A.3): Adam, warm-up and cosine decay, averaged weights, checkpoints, one JSON line a step."""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import fastcrystal
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import in_memory
from fastcrystal.data.store import Store
from fastcrystal.features.elements import SYMBOLS
from fastcrystal.model.config import UNetConfig
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.model.unet import CrystalUNet
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.parallel.distributed import DistributedContext
from fastcrystal.sampling.generator import Generator
from fastcrystal.training.checkpoint import (
    latest_checkpoint,
    load_weights,
    read_config,
    read_state,
    read_tensors,
    save_checkpoint,
    write_config,
)
from fastcrystal.training.config import TrainConfig
from fastcrystal.training.logger import MetricLogger
from fastcrystal.training.objective import Averaged, Objective, TrainingBatch
from fastcrystal.training.process import make_process
from fastcrystal.training.signals import Stopped, StopRequest
from fastcrystal.training.tasks import GenerateTask, ModifyTask, make_splits
from fastcrystal.utils.device import compile_network, half_precision, pick_device
from fastcrystal.utils.progress import progress_bar

logger = logging.getLogger(__name__)

#: most crystals of a validation loss: one forward pass
VALIDATION_SIZE = 512
#: most crystals that the mean and deviation of lattices are measured on
FIT_ON = 262_144
#: steps after which losses are fetched from the device, and a GPU is waited for
FETCH_EVERY = 20
#: losses that are not finite end a run when more than `max_bad_steps` of so many steps have one
BAD_WINDOW = 100
#: settings that may change when a run is resumed; "data" may move, but must hold the same crystals
FREE_ON_RESUME = frozenset(
    (
        *("data", "device", "precision", "max_steps", "max_test", "checkpoint_every", "validate_every", "keep"),
        *("sampling_steps", "guidance", "eta", "clip", "compile", "recompute", "gradient_hook", "max_bad_steps"),
    )
)


class Trainer:
    """One run: a folder, a model, and the loop between them.

    Parameters
    ----------
    config : TrainConfig
    run : Path
        Run folder; made if absent. A folder with checkpoints is resumed only by `resume`.
    ranks : DistributedContext, optional
        The processes that train together, `batch_size` crystals a step in all; those joined where not given.
    """

    def __init__(self, config: TrainConfig, run: Path, ranks: DistributedContext | None = None) -> None:
        self.config, self.run = config, run
        self.ranks = DistributedContext.current() if ranks is None else ranks
        self.device = pick_device(config.device)
        self.splits = make_splits(config)
        self.scaling = self._fit_scaling()
        self.process = make_process(config, self.scaling)
        task = GenerateTask if config.task == "generate" else ModifyTask
        self.task = task(self.splits, config, self.scaling, self.device, self.ranks)
        self.val = self.task.validation(VALIDATION_SIZE)
        with self._own_random_state():
            torch.manual_seed(config.seed)
            self.model = CrystalUNet(self._model_config()).to(self.device)
        self.model.unet.recompute = config.recompute
        if config.compile:
            # the network alone: what it is trained for draws numbers, which a graph cannot
            compile_network(self.model.unet)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.lr, betas=(0.9, 0.999), eps=1e-8, fused=True
        )
        self.half = half_precision(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)
        self.objective = Objective(self.process, config, self.splits.length)
        self._loss = self._for_all_ranks(self.objective.bind(self.model))
        self.step = 0
        self.bad_steps: list[int] = []

    def _own_random_state(self) -> AbstractContextManager[None]:
        """torch's random state is seeded inside, and its caller's again after it."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def _for_all_ranks(self, loss: torch.nn.Module) -> torch.nn.Module:
        if self.ranks.is_single_process:
            return loss
        together = DistributedDataParallel(loss, gradient_as_bucket_view=True)
        if self.config.gradient_hook == "bf16":
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            together.register_comm_hook(None, bf16_compress_hook)
        return together

    def _fit_scaling(self) -> LatticeScaling:
        if self.config.lattice == "raw":
            return LatticeScaling()
        train = self.splits.indices.train
        some = train[:: -(-len(train) // FIT_ON)]  # of millions, evenly spaced ones tell as much
        crystals = self.splits.load(some).batch()
        return LatticeScaling.fit(crystals, self.config.site_scale, 0.5, self.config.lattice)  # type: ignore[arg-type]

    def _model_config(self) -> UNetConfig:
        energy = torch.from_numpy(self.splits.data.energy[self.splits.indices.train])
        scale: dict[str, Any] = dict(zip(("energy_mean", "energy_std"), _moments(energy), strict=True))
        if isinstance(self.task, ModifyTask):
            what = "change" if self.config.conditions_on_initial else "energy"
            scale |= dict(zip((f"{what}_mean", f"{what}_std"), _moments(self.task.changes()), strict=True))
        return self.config.network(length=self.splits.length, site_period=self.scaling.site_scale, **scale)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then cosine decay to zero at the last step."""
        c = self.config
        warmup = min(c.warmup, c.max_steps // 2)
        if step < warmup:
            return c.lr * (step + 1) / warmup
        return c.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, c.max_steps - warmup)))

    def fit(self) -> None:
        """Train to `max_steps`; writes config.json, metrics.jsonl, TensorBoard events and checkpoints.

        Raises
        ------
        Stopped
            After SIGTERM or Ctrl-C, when the work is saved.
        FloatingPointError
            If too many losses are not finite.
        OSError
            If the folder cannot be written to.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        if self.ranks.is_main_process:
            write_config(self.run, self.description())
        bar = progress_bar(
            total=self.config.max_steps * self.config.batch_size,
            initial=self.step * self.config.batch_size,
            desc="training",
            unit="crystal",
            show=self.ranks.is_main_process,
        )
        metric_logger = MetricLogger(self.run, self.step, self.ranks)
        with StopRequest() as request, metric_logger, bar, self._own_random_state():
            while self.step < self.config.max_steps:
                lr = self.learning_rate(self.step)
                loss = self.train_step(lr)
                self.step += 1
                metric_logger.add(self.step, loss, lr)
                save = self._due(self.config.checkpoint_every)
                validated: dict[str, float] = {}
                if self.val is not None and (save or self._due(self.config.validate_every)):
                    value = self.validate(self.val)
                    bar.set_postfix(loss=f"{float(loss):.3f}", val=f"{value:.3f}", refresh=False)
                    validated = {"val_loss": value} if math.isfinite(value) else {}
                if save or self._due(self.config.validate_every) or self._due(FETCH_EVERY):
                    self._count_bad(metric_logger.flush(**validated))
                if save:
                    self.save(**validated)
                bar.update(self.config.batch_size)
                # all processes must agree, which takes a message: not after every step where there are several
                if self.ranks.is_single_process or self._due(FETCH_EVERY):
                    self._leave_if_asked(request, metric_logger, saved=save)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.max_steps

    def _count_bad(self, steps: Sequence[int]) -> None:
        """Remember steps whose loss was not finite; FloatingPointError when they are too many."""
        self.bad_steps = [s for s in (*self.bad_steps, *steps) if s > self.step - BAD_WINDOW]
        if steps and self.ranks.is_main_process:
            logger.warning(
                f"the loss was not finite at step {', '.join(map(str, steps))}: skipped, the weights are as before "
                f"({len(self.bad_steps)} of the last {BAD_WINDOW} steps)"
            )
        if len(self.bad_steps) > self.config.max_bad_steps:
            raise FloatingPointError(
                f"the loss was not finite in {len(self.bad_steps)} of the last {BAD_WINDOW} steps, last at step "
                f"{self.bad_steps[-1]}: lower --lr and begin anew, or resume from the last checkpoint"
            )

    def _leave_if_asked(self, request: StopRequest, metric_logger: MetricLogger, saved: bool) -> None:
        """Save and raise Stopped where this or another process was told to end."""
        if self.step == self.config.max_steps or not self.ranks.all_reduce_max(request.signal is not None):
            return
        if not saved:
            self._count_bad(metric_logger.flush())
            self.save()
        name = request.signal.name if request.signal else "a signal to another process"
        raise Stopped(
            f"stopped by {name} after step {self.step} of {self.config.max_steps}, which is saved: go on with "
            f"--out {self.run} --resume",
            request.status,
        )

    def train_step(self, lr: float) -> Tensor:
        """One optimizer step, left out where a gradient is not finite.

        Parameters
        ----------
        lr : float
            Learning rate.

        Returns
        -------
        Tensor, shape ()
            The mean loss of this process's share of the batch, on the device: nothing waits for it here.
        """
        noise = Noise(self.config.seed, self.step + 1, self.ranks.rows(self.config.batch_size).start)
        torch.manual_seed(noise.integer(Stream.LAYER_DROPOUT))
        example = self.task.batch(noise)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            loss: Tensor = self._loss(example, noise)
        self.optimizer.zero_grad(set_to_none=True)
        # by 0 where the loss is not finite: so are all gradients then, which DDP brings to every process
        guarded = loss / loss.isfinite()
        self.scaler.scale(guarded).backward()  # type: ignore[no-untyped-call]
        if not self.scaler.is_enabled():
            # what GradScaler does, for the other precisions: fused Adam leaves a step out by itself, without a wait
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # a young average forgets faster, so that a short run does not carry its initial weights
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            own = self.model.state_dict()
            torch._foreach_lerp_([self.average[k] for k in own], list(own.values()), 1 - decay)
        return loss.detach()

    @torch.no_grad()
    def validate(self, example: TrainingBatch) -> float:
        """Loss of the averaged weights, with the same noise every time and no condition left open."""
        self.model.eval()
        noise = Noise(self.config.seed)
        loss = self.objective(Averaged(self.model, self.average), example, noise, regularize=False)
        self.model.train()
        return float(loss)

    def description(self) -> dict[str, Any]:
        """What config.json says of the run."""
        data, split = self.splits.data, self.splits.indices
        return {
            "fastcrystal": fastcrystal.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {self.device}",
            "processes": self.ranks.world,
            "train": self.config.to_dict(),
            "model": self.model.config.to_dict(),
            "scaling": self.scaling.to_dict(),
            "length": self.splits.length,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "data": {
                "name": data.name,
                "sha256": data.fingerprint(),
                "n_train": len(split.train),
                "n_val": len(split.val),
                "n_test": len(split.test),
                "left_out": self.splits.left_out,
                "elements": elements_of(data.select(split.train)),
                "formula_units": formula_units(data.select(split.train)),
            },
        }

    def save(self, **measured: float) -> Path | None:
        """Write a checkpoint of the present step; only the leading process does."""
        if not self.ranks.is_main_process:
            return None
        moments = self.optimizer.state_dict()["state"]
        tensors = {
            "model": self.model.state_dict(),
            "ema": self.average,
            "optimizer": {f"{i}.{k}": torch.as_tensor(v) for i, entry in moments.items() for k, v in entry.items()},
        }
        state = {"scaler": self.scaler.state_dict(), "bad_steps": self.bad_steps, **measured}
        return save_checkpoint(self.run, self.step, tensors, state, self.config.keep)

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
        for k, value in self.average.items():
            # into memory of our own: sums over a file's, which is aligned otherwise, may round otherwise
            value.copy_(average[k])
        moments: dict[int, dict[str, Tensor]] = {}
        parameters = list(self.model.parameters())
        for key, value in read_tensors(folder, "optimizer").items():
            index, name = key.split(".")
            own = torch.empty_like(parameters[int(index)])  # fused Adam takes moments in the parameters' strides alone
            moments.setdefault(int(index), {})[name] = own.copy_(value) if value.shape == own.shape else value
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.bad_steps = state["step"], state["bad_steps"]

    def sampler(self) -> Generator:
        """The averaged weights, ready to generate."""
        model = CrystalUNet(self.model.config).to(self.device).eval()
        model.load_state_dict(self.average)
        out = Generator(model, self.config, self.scaling, self.splits.length)
        out.run, out.step = self.description(), self.step
        return out


def _moments(values: Tensor) -> tuple[float, float]:
    """Mean and standard deviation; a constant has the deviation 1e-3, so that it can be divided by."""
    values = values.double()
    return float(values.mean()), max(float(values.std(correction=0)), 1e-3)


def elements_of(data: CrystalDataset | Store) -> list[str]:
    """Symbols that occur, by atomic number."""
    return [SYMBOLS[z] for z in sorted(frozenset().union(*data.formula_elements()))]


def formula_units(data: CrystalDataset | Store) -> dict[str, dict[str, int]]:
    """How many formula units the cells have, by "anonymous formula:space group": {"AB2:191": {"1": 12}}."""
    out: dict[str, dict[str, int]] = {}
    # crystals of one formula, size and group count alike: of millions, one of each is read
    alike = np.stack([data.formulas[1], data.num_sites, data.space_group.astype(np.int64)], axis=1)
    _, first, count = np.unique(alike, axis=0, return_index=True, return_counts=True)
    some = in_memory(data.select(first))
    offsets = some.offsets
    for i, n in enumerate(count.tolist()):
        anonymous, units = anonymise(some.species[offsets[i] : offsets[i + 1]].tolist())
        counts = out.setdefault(f"{anonymous}:{some.space_group[i]}", {})
        counts[str(units)] = counts.get(str(units), 0) + n
    return out


def anonymise(species: list[int]) -> tuple[str, int]:
    """Reduced anonymous formula and number of formula units: [5, 5, 5, 5, 73, 73] -> ("AB2", 2)."""
    amounts = sorted(species.count(z) for z in set(species))
    units = math.gcd(*amounts)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    reduced = [a // units for a in amounts]
    return "".join(f"{letters[i]}{n if n > 1 else ''}" for i, n in enumerate(reduced)), units


def new_run_folder(config: TrainConfig, root: Path = Path("runs"), began: float | None = None) -> Path:
    """A folder name that says what the run is and when it began (seconds since 1970; now where not given)."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began))
    what = [config.algo, config.noise if config.task == "generate" else config.task, Path(config.data).stem]
    return root / "-".join([*what, config.preset, stamp])
