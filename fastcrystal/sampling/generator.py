"""From conditions to crystals: a trained model, opened from its run folder."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastcrystal.crystal import EXTRA_ROWS, CrystalBatch
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.model.unet import Condition, CrystalUNet
from fastcrystal.ops.philox import Noise
from fastcrystal.parallel.distributed import DistributedContext
from fastcrystal.process import Process
from fastcrystal.process.flow import FlowMatching
from fastcrystal.process.samplers import Problem, SamplingConfig, sample, sampler_of
from fastcrystal.sampling.pretrained import resolve
from fastcrystal.sampling.request import Request
from fastcrystal.sampling.request import conditions as conditions_of
from fastcrystal.training.checkpoint import (
    find_checkpoint,
    load_weights,
    read_config,
    read_settings,
    read_state,
    read_tensors,
    run_folder,
)
from fastcrystal.training.config import RunConfig
from fastcrystal.training.objective import noised_sites
from fastcrystal.utils.device import compile_network, compile_step, half_precision, pick_device
from fastcrystal.utils.progress import progress_bar

if TYPE_CHECKING:
    from fastcrystal.training.trainer import Trainer


class CrystalGenerator:
    """A trained model that turns conditions, and in modification initial structures, into crystals.

    Parameters
    ----------
    model : CrystalUNet
        In evaluation mode, on its device.
    config : RunConfig
        Settings of its training, for its data set (`RunConfig.with_data`).
    scaling : LatticeScaling
    """

    def __init__(self, model: CrystalUNet, config: RunConfig, scaling: LatticeScaling) -> None:
        self.model, self.config, self.scaling, self.length = model, config, scaling, config.model.length
        # guidance is that of the closing evaluation alone
        self.process, self.sampling = config.process, config.sampling.changed(guidance=1.0)
        self.run: dict[str, Any] = {}
        self.step = 0

    @classmethod
    def from_run(cls, run: str | Path, device: str = "auto") -> CrystalGenerator:
        """Open the newest checkpoint of a run folder, with its averaged weights.

        Parameters
        ----------
        run : str or Path
            "pretrained": the shipped model. Or the folder that training wrote, or a checkpoint in it:
            RUN/checkpoints/step_..., RUN/checkpoints/best.
        device : str
            "auto", "cpu", "cuda", "cuda:N".

        Raises
        ------
        ValueError
            If there is no usable checkpoint: not a run folder, damaged, or another version's.
        """
        path = resolve(run)
        folder = run_folder(path)
        about, config = read_config(folder), read_settings(folder)
        _, checkpoint = find_checkpoint(path)
        target = pick_device(device)
        model = CrystalUNet(config.model)
        load_weights(model, read_tensors(checkpoint, "ema"), checkpoint)
        out = cls(model.to(target).eval(), config, LatticeScaling.from_dict(about["scaling"]))
        out.run, out.step = about, read_state(checkpoint)["step"]
        return out

    @classmethod
    def from_trainer(cls, trainer: Trainer) -> CrystalGenerator:
        """The averaged weights of a training as they are now."""
        out = cls(copy.deepcopy(trainer.ema.model), trainer.config, trainer.scaling)
        out.run, out.step = trainer.description(), trainer.step
        return out

    def generate(
        self,
        formula: str,
        space_group: int | None = None,
        energy: float | None = None,
        count: int = 8,
        *,
        formula_units: int | None = None,
        seed: int = 0,
        **changes: Any,
    ) -> CrystalBatch:
        """Crystals of a formula.

        Parameters
        ----------
        formula : str
            For example "TaB2"; kept exactly.
        space_group : int, optional
            International number 1..230; unconditional where not given.
        energy : float, optional
            Formation energy, eV/atom; unconditional where not given.
        count : int
        formula_units : int, optional
            Formula units in the primitive cell; as most often in the training data where not given.
        seed : int
        **changes
            Fields of `SamplingConfig` by name, such as steps=25.

        Returns
        -------
        CrystalBatch
            On the CPU; fractional coordinates in [0, 1).

        Raises
        ------
        ValueError
            If the model cannot do what is asked: an unknown element, more sites than its matrix holds, or a condition
            left out that it was never trained without.
        """
        batch, _ = conditions_of(Request(formula, space_group, energy, count, formula_units), self)
        return self.sample(batch, seed=seed, **changes)

    @property
    def max_sites(self) -> int:
        """Most sites in a cell."""
        return self.length - EXTRA_ROWS

    @torch.no_grad()
    def sample(
        self,
        conditions: CrystalBatch,
        config: SamplingConfig | None = None,
        *,
        initial: CrystalBatch | None = None,
        seed: int = 0,
        first: int = 0,
        progress: bool = False,
        **changes: Any,
    ) -> CrystalBatch:
        """One crystal for each crystal of `conditions`, by the sampler of `config`.

        Parameters
        ----------
        conditions : CrystalBatch
            Species, num_sites, space_group and energy are used; coordinates and lattice are not looked at. Space
            group 0 and energy NaN are unconditional, which needs a model trained with `condition_dropout`. In
            modification the energy is E(target) - E(initial).
        config : SamplingConfig, optional
            The run's own, `self.sampling`, where not given.
        initial : CrystalBatch, optional
            Structures to modify, with the species of `conditions` site by site.
        seed : int
            The same seed and conditions give the same noise, in batches of any size and with any number of processes.
        first : int
            Global index of the first crystal: conditions given in parts have the noise that they would have together.
        progress : bool
            Show a bar on stderr.
        **changes
            Fields of `SamplingConfig` by name, such as steps=25, sampler="heun"; None keeps a field.

        Returns
        -------
        CrystalBatch
            On the CPU, with the species and conditions of `conditions`; fractional coordinates in [0, 1).

        Raises
        ------
        ValueError
            If a crystal has more sites than the model's matrix, a condition is missing or guidance asked for without
            a model trained for it, an initial structure is missing or not wanted, or a setting does not suit the
            process or its schedule.
        """
        config = (self.sampling if config is None else config).changed(**changes)
        sampler_of(self.process, config)
        self._check(conditions, initial, config.guidance)
        half = half_precision(config.precision, self.device)
        autocast = partial(torch.autocast, self.device.type, half, enabled=half is not None)
        frac, lattice = [conditions.frac[:0]], [conditions.lattice[:0]]
        ranks, size = DistributedContext.current(), config.batch_size
        own = ranks.part(math.ceil(len(conditions) / size))
        count = len(range(len(conditions))[own.start * size : own.stop * size])
        bar = progress_bar(total=count, desc="sampling", unit="crystal", show=progress)
        for number in range(own.start, own.stop):
            chunk = torch.arange(number * size, min((number + 1) * size, len(conditions)))
            real = len(chunk)
            if config.compile and real < size:  # filled up: another size would be compiled anew
                chunk = torch.cat([chunk, chunk[-1:].expand(size - real)])
            part = conditions[chunk].to(self.device)
            x_0 = None if initial is None else self.scaling.encode(initial[chunk].to(self.device), self.length)
            n = noised_sites(self.config.data, part.num_sites, self.length)
            with autocast():
                network = self._network(part, x_0, config.guidance)
                noise = Noise(seed, first=first + number * size)
                problem: Problem[Process] = Problem(self.process, network, n, noise)
                if config.compile:
                    problem = self._compiled(problem)
                x = sample(problem, self.length, config, x_0)
            made = self.scaling.decode(x.float(), part.species, part.num_sites)
            frac.append(made[0][:real].cpu())
            lattice.append(made[1][:real].cpu())
            bar.update(real)
        bar.close()
        whole = [ranks.gather_rows(torch.cat(parts)) for parts in (frac, lattice)]
        return replace(conditions.to("cpu"), frac=whole[0], lattice=whole[1])

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    def _compiled(self, problem: Problem[Process]) -> Problem[Process]:
        """With a compiled step; or, where the process has none, the network compiled in place."""
        if isinstance(problem.process, FlowMatching):
            return replace(problem, transform=compile_step(self.device))
        compile_network(self.model.unet)
        return problem

    def _network(self, part: CrystalBatch, x_0: Tensor | None, guidance: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The network with its conditions, and guidance where asked: (x, t) -> (B, L, 3)."""
        initial = x_0 if self.config.model.initial else None
        n = noised_sites(self.config.data, part.num_sites, self.length)

        def embed(group: Tensor, energy: Tensor) -> Condition:
            cond = self.model.condition(part.species, part.num_sites, group, energy, initial)
            return cond._replace(num_sites=n)

        conditional = embed(part.space_group, part.energy)
        if guidance == 1:
            return lambda x, t: self.model(x, t, conditional)
        unconditional = embed(torch.zeros_like(part.space_group), torch.full_like(part.energy, torch.nan))

        def guided(x: Tensor, t: Tensor) -> Tensor:
            without = self.model(x, t, unconditional)
            gap = self.model(x, t, conditional) - without
            if self.config.predicts_data:  # two predictions of a site may lie a whole turn apart
                period = self.scaling.site_scale
                gap = torch.cat([gap[:, :-3] - period * (gap[:, :-3] / period).round(), gap[:, -3:]], dim=1)
            out: Tensor = without + guidance * gap
            return out

        return guided

    def _check(self, conditions: CrystalBatch, initial: CrystalBatch | None, guidance: float) -> None:
        """Raise ValueError for a request that the model cannot meet."""
        if int(conditions.num_sites.max()) > self.max_sites:
            raise ValueError(
                f"num_sites must be in 1..{self.max_sites} for this model, got {int(conditions.num_sites.max())}"
            )
        if self.config.task == "generate":
            if initial is not None:
                raise ValueError("this model generates: it takes no initial structure (train one with --task modify)")
        elif initial is None:
            if not (self.config.model.initial and self.config.regularization.condition_dropout):
                raise ValueError(
                    "this model modifies: give it initial structures, sample(..., initial=...), or generate "
                    "with a model of --task generate"
                )
        elif initial.species.shape != conditions.species.shape or not initial.species.equal(conditions.species):
            raise ValueError("initial structures must have the species of the conditions, site by site")
        if not self.config.regularization.condition_dropout:
            if guidance != 1:
                raise ValueError(
                    f"guidance {guidance:g} needs a model trained with condition_dropout; this one was trained with 0"
                )
            for name, missing in (
                ("space_group", conditions.space_group == 0),
                ("energy", conditions.energy.isnan()),
            ):
                if missing.any():
                    raise ValueError(
                        f"{name} of crystal {int(missing.nonzero()[0])} is missing: this model was trained without "
                        "condition_dropout and needs it"
                    )


def load_model(run: str | Path = "pretrained", device: str = "auto") -> CrystalGenerator:
    """A trained model: `CrystalGenerator.from_run`.

    Parameters
    ----------
    run : str or Path
        "pretrained" or "pretrained-modify": the models in the package. Or a run folder, or a checkpoint in it.
    device : str
        "auto", "cpu", "cuda", "cuda:N".

    Raises
    ------
    ValueError
        If there is no usable checkpoint.
    """
    return CrystalGenerator.from_run(run, device)
