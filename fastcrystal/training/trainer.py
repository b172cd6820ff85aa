"""Training loop (A.3): Adam, warm-up and cosine decay, averaged weights, checkpoints, one JSON line a step."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import fastcrystal
from fastcrystal.model.unet import CrystalUNet
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.parallel.distributed import DistributedContext
from fastcrystal.training.checkpoint import (
    latest_checkpoint,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    read_config,
    read_settings,
    read_state,
    read_tensors,
    save_checkpoint,
    write_config,
)
from fastcrystal.training.config import RunConfig
from fastcrystal.training.ema import EMA
from fastcrystal.training.logger import MetricLogger
from fastcrystal.training.objective import Objective, TrainingBatch
from fastcrystal.training.run import check_resumable, describe_data, energy_moments, fit_scaling
from fastcrystal.training.signals import Stopped, StopRequest
from fastcrystal.training.tasks import GenerateTask, ModifyTask, make_splits
from fastcrystal.utils.device import compile_network, half_precision, pick_device
from fastcrystal.utils.progress import progress_bar

logger = logging.getLogger(__name__)

#: most crystals of a validation loss: one forward pass
VALIDATION_SIZE = 512
#: steps after which losses are fetched from the device, and a GPU is waited for
FETCH_EVERY = 20
#: losses that are not finite end a run when more than `max_bad_steps` of so many steps have one
BAD_WINDOW = 100


class Trainer:
    """One run: a folder, a model, and the loop between them.

    Parameters
    ----------
    config : RunConfig
    run : Path
        Run folder; made if absent. A folder with checkpoints is resumed only by `resume`.
    ranks : DistributedContext, optional
        The processes that train together, `batch_size` crystals a step in all; those joined where not given.
    """

    def __init__(self, config: RunConfig, run: Path, ranks: DistributedContext | None = None) -> None:
        self.run = run
        self.ranks = DistributedContext.current() if ranks is None else ranks
        self.device = pick_device(config.trainer.device)
        self.splits = make_splits(config)
        self.scaling = fit_scaling(self.splits, config.data)
        task = GenerateTask if config.task == "generate" else ModifyTask
        self.task = task(self.splits, config, self.scaling, self.device, self.ranks)
        self.val = self.task.validation(VALIDATION_SIZE)
        moments = energy_moments(self.splits, self.task, config)
        self.config = config = config.with_data(self.splits.length, self.scaling, **moments)
        with self._own_random_state():
            torch.manual_seed(config.trainer.seed)
            self.model = CrystalUNet(config.model).to(self.device)
        self.model.unet.recompute = config.trainer.recompute
        self.ema = EMA(self.model, config.optim.ema)
        if config.trainer.compile:
            # the network alone: what it is trained for draws numbers, which a graph cannot
            compile_network(self.model.unet)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.optim.lr, betas=(0.9, 0.999), eps=1e-8, fused=True
        )
        self.half = half_precision(config.trainer.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)
        self._loss = self._for_all_ranks(Objective(config, self.model))
        self.step = 0
        self.bad_steps: list[int] = []

    def _own_random_state(self) -> AbstractContextManager[None]:
        """torch's random state is seeded inside, and its caller's again after it."""
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    def _for_all_ranks(self, loss: torch.nn.Module) -> torch.nn.Module:
        if self.ranks.is_single_process:
            return loss
        together = DistributedDataParallel(loss, gradient_as_bucket_view=True)
        if self.config.optim.gradient_hook == "bf16":
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            together.register_comm_hook(None, bf16_compress_hook)
        return together

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then cosine decay to zero at the last step."""
        lr, last = self.config.optim.lr, self.config.trainer.max_steps
        warmup = min(self.config.optim.warmup, last // 2)
        if step < warmup:
            return lr * (step + 1) / warmup
        return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, last - warmup)))

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
            total=self.config.trainer.max_steps * self.config.trainer.batch_size,
            initial=self.step * self.config.trainer.batch_size,
            desc="training",
            unit="crystal",
            show=self.ranks.is_main_process,
        )
        metric_logger = MetricLogger(self.run, self.step, self.ranks)
        with StopRequest() as request, metric_logger, bar, self._own_random_state():
            while self.step < self.config.trainer.max_steps:
                lr = self.learning_rate(self.step)
                loss = self.train_step(lr)
                self.step += 1
                metric_logger.add(self.step, loss, lr)
                save = self._due(self.config.trainer.checkpoint_every)
                validated: dict[str, float] = {}
                if self.val is not None and (save or self._due(self.config.trainer.validate_every)):
                    value = self.validate(self.val)
                    bar.set_postfix(loss=f"{float(loss):.3f}", val=f"{value:.3f}", refresh=False)
                    validated = {"val_loss": value} if math.isfinite(value) else {}
                if save or self._due(self.config.trainer.validate_every) or self._due(FETCH_EVERY):
                    self._count_bad(metric_logger.flush(**validated))
                if save:
                    self.save(**validated)
                bar.update(self.config.trainer.batch_size)
                # all processes must agree, which takes a message: not after every step where there are several
                if self.ranks.is_single_process or self._due(FETCH_EVERY):
                    self._leave_if_asked(request, metric_logger, saved=save)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.trainer.max_steps

    def _count_bad(self, steps: Sequence[int]) -> None:
        """Remember steps whose loss was not finite; FloatingPointError when they are too many."""
        self.bad_steps = [s for s in (*self.bad_steps, *steps) if s > self.step - BAD_WINDOW]
        if steps and self.ranks.is_main_process:
            logger.warning(
                f"the loss was not finite at step {', '.join(map(str, steps))}: skipped, the weights are as before "
                f"({len(self.bad_steps)} of the last {BAD_WINDOW} steps)"
            )
        if len(self.bad_steps) > self.config.optim.max_bad_steps:
            raise FloatingPointError(
                f"the loss was not finite in {len(self.bad_steps)} of the last {BAD_WINDOW} steps, last at step "
                f"{self.bad_steps[-1]}: lower optim.lr and begin anew, or resume from the last checkpoint"
            )

    def _leave_if_asked(self, request: StopRequest, metric_logger: MetricLogger, saved: bool) -> None:
        """Save and raise Stopped where this or another process got a signal."""
        if self.step == self.config.trainer.max_steps or not self.ranks.all_reduce_max(request.signal is not None):
            return
        if not saved:
            self._count_bad(metric_logger.flush())
            self.save()
        name = request.signal.name if request.signal else "a signal to another process"
        raise Stopped(
            f"stopped by {name} after step {self.step} of {self.config.trainer.max_steps}, which is saved: go on with "
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
        noise = self.task.noise(self.step + 1)
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
        self.ema.update(self.step)
        return loss.detach()

    @torch.no_grad()
    def validate(self, example: TrainingBatch) -> float:
        """Loss of the averaged weights, with the same noise every time and all conditions."""
        return float(Objective(self.config, self.ema.model)(example, Noise(self.config.trainer.seed), regularize=False))

    def description(self) -> dict[str, Any]:
        """Contents of config.json: versions, settings, and what was measured on the data."""
        return {
            "fastcrystal": fastcrystal.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {self.device}",
            "processes": self.ranks.world,
            "config": self.config.to_dict(),
            "scaling": self.scaling.to_dict(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "data": describe_data(self.splits),
        }

    def save(self, **measured: float) -> Path | None:
        """Write a checkpoint of the present step; only the leading process does."""
        if not self.ranks.is_main_process:
            return None
        tensors = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        state = {"scaler": self.scaler.state_dict(), "bad_steps": self.bad_steps, **measured}
        return save_checkpoint(self.run, self.step, tensors, state, self.config.trainer.keep)

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run folder.

        Raises
        ------
        ValueError
            If there is none, or it belongs to other settings; names the first that differs.
        """
        before, now = read_config(self.run), json.loads(json.dumps(self.description()))
        check_resumable(self.run, read_settings(self.run), self.config)
        for name in ("scaling", "data"):
            if before[name] != now[name]:
                raise ValueError(f"{self.run} was trained with another {name}: resume with its config.json's settings")
        folder = latest_checkpoint(self.run)
        state = read_state(folder)
        for name, module in (("model", self.model), ("ema", self.ema.model)):
            load_weights(module, read_tensors(folder, name, self.device), folder)
        load_optimizer(self.optimizer, read_tensors(folder, "optimizer"))
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.bad_steps = state["step"], state["bad_steps"]
