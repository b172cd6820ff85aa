"""From conditions to crystals: a trained model, opened from its run folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastcrystal.checkpoint import latest_checkpoint, load_weights, read_config, read_state, read_tensors
from fastcrystal.config import TrainConfig
from fastcrystal.crystal import EXTRA_ROWS, CrystalBatch
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.model.unet import CrystalUNet, UNetConfig
from fastcrystal.process.flow import FlowMatching


def make_flow(config: TrainConfig, scaling: LatticeScaling) -> FlowMatching:
    """The process that `config` asks for: standardised lattices start from normal noise, raw ones as the sites do."""
    return FlowMatching(
        noise=config.noise,  # type: ignore[arg-type]
        lattice_noise="normal" if scaling.mode == "composition" else "same",
        torus=config.torus,
        site_scale=scaling.site_scale,
        site_offset=scaling.site_offset,
        lattice_weight=config.lattice_weight,
    )


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU where there is one.

    Raises
    ------
    ValueError
        If the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name} was asked for, but torch {torch.__version__} sees no GPU: use --device cpu")
    return device


class Generator:
    """A trained model that turns conditions into crystals.

    Parameters
    ----------
    model : CrystalUNet
        In evaluation mode, on its device.
    flow : FlowMatching
    scaling : LatticeScaling
    length : int
        L of the crystal matrix.
    """

    def __init__(self, model: CrystalUNet, flow: FlowMatching, scaling: LatticeScaling, length: int) -> None:
        self.model, self.flow, self.scaling, self.length = model, flow, scaling, length
        self.config: dict[str, Any] = {}
        self.step = 0

    @classmethod
    def from_run(cls, run: str | Path, device: str = "auto") -> Generator:
        """Open the newest checkpoint of a run folder, with its averaged weights.

        Parameters
        ----------
        run : str or Path
            The folder that training wrote, or one checkpoint in it.
        device : str
            "auto", "cpu", "cuda", "cuda:N".

        Raises
        ------
        ValueError
            If there is no usable checkpoint: not a run folder, damaged, or another version's.
        """
        folder = Path(run)
        checkpoint = None
        if folder.parent.name == "checkpoints":
            checkpoint, folder = folder, folder.parent.parent
        config = read_config(folder)
        checkpoint = latest_checkpoint(folder) if checkpoint is None else checkpoint
        target = pick_device(device)
        train, scaling = TrainConfig.from_dict(config["train"]), LatticeScaling.from_dict(config["scaling"])
        model = CrystalUNet(UNetConfig.from_dict(config["model"]))
        load_weights(model, read_tensors(checkpoint, "ema"), checkpoint)
        out = cls(model.to(target).eval(), make_flow(train, scaling), scaling, config["length"])
        out.config, out.step = config, read_state(checkpoint)["step"]
        return out

    @property
    def max_sites(self) -> int:
        """Most sites in a cell."""
        return self.length - EXTRA_ROWS

    @torch.no_grad()
    def sample(
        self,
        conditions: CrystalBatch,
        *,
        steps: int = 100,
        seed: int = 0,
        batch_size: int = 256,
        progress: bool = False,
    ) -> CrystalBatch:
        """One crystal for each crystal of `conditions` (Algorithm 6).

        Parameters
        ----------
        conditions : CrystalBatch
            Species, num_sites, space_group and energy are used; coordinates and lattice are not looked at.
        steps : int
            Euler steps.
        seed : int
            The same seed, conditions and batch size give the same crystals, whatever the device draws them on.
        batch_size : int
            Crystals at a time.
        progress : bool
            Show a bar on stderr.

        Returns
        -------
        CrystalBatch
            On the CPU, with the species and conditions of `conditions`; fractional coordinates in [0, 1).

        Raises
        ------
        ValueError
            If a crystal has more sites than the model's matrix, or `steps` is less than 1.
        """
        if int(conditions.num_sites.max()) > self.max_sites:
            raise ValueError(
                f"num_sites must be in 1..{self.max_sites} for this model, got {int(conditions.num_sites.max())}"
            )
        generator = torch.Generator().manual_seed(seed)
        parts = []
        bar = tqdm(total=len(conditions), desc="sampling", unit="crystal", disable=not progress, file=sys.stderr)
        for start in range(0, len(conditions), batch_size):
            part = conditions[start : start + batch_size].to(self.device)
            parts.append(self._sample_batch(part, steps, generator).to("cpu"))
            bar.update(len(part))
        bar.close()
        frac, lattice = torch.cat([p.frac for p in parts]), torch.cat([p.lattice for p in parts])
        return replace(conditions.to("cpu"), frac=frac, lattice=lattice)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def _sample_batch(self, part: CrystalBatch, steps: int, generator: torch.Generator) -> CrystalBatch:
        cond = self.model.condition(part.species, part.num_sites, part.space_group, part.energy)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            out: Tensor = self.model(x, t, cond)
            return out

        x = self.flow.sample(velocity, part.num_sites, self.length, steps, generator)
        frac, lattice = self.scaling.decode(x.float(), part.species, part.num_sites)
        return replace(part, frac=frac, lattice=lattice)
