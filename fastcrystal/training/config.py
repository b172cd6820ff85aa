"""The settings of a training run: one dataclass, one field per command-line flag, written to RUN/config.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastcrystal.utils.settings import Settings

if TYPE_CHECKING:
    from fastcrystal.model.config import UNetConfig

ALGORITHMS = ("cfm", "ddpm", "ddim", "regression")
NOISES = ("uniform", "normal")
TASKS = ("generate", "modify")
LATTICES = ("composition", "raw", "standard", "triangular", "metric")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SCHEDULES = ("squaredcos_cap_v2", "linear")
PAIRINGS = ("listed", "nearest")
PREDICTIONS = ("data", "paper")
SITE_ORDERS = ("canonical", "random")
GRADIENT_HOOKS = ("none", "bf16")

#: largest share of the data's variance that a schedule may leave at its end
MAX_SIGNAL = 0.05

#: noise that each task and algorithm may start from, the default first; "none": it starts from the initial structure
NOISES_OF: dict[tuple[str, str], tuple[str, ...]] = {
    ("generate", "cfm"): ("uniform", "normal"),
    ("generate", "ddpm"): ("normal",),
    ("generate", "ddim"): ("normal",),
    ("modify", "regression"): ("none",),
    ("modify", "cfm"): ("none",),
    ("modify", "ddpm"): ("normal",),
    ("modify", "ddim"): ("normal",),
}

#: what a preset changes beside the network: the paper's recipe (A.3), and one that fits ten minutes on two cores
RECIPES: dict[str, dict[str, Any]] = {
    "slim": {},
    "paper": {
        "max_steps": 200_000,
        "batch_size": 256,
        "lr": 1e-4,
        "warmup": 500,
        "ema": 0.9999,
        "lattice": "raw",
        "site_scale": 1.0,
        "length": 64,
        "site_species": False,
        "place_channels": False,
        "site_waves": False,
        "identity_embedding": False,
        "predict": "paper",
        "dropout": 0.0,
        "name_dropout": 0.0,
        "energy_noise": 0.0,
    },
}


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Settings of a run. `TrainConfig.from_preset` fills what a preset decides."""

    algo: str = "cfm"
    """"cfm": conditional flow matching; "ddpm" and "ddim": diffusion, trained alike and sampled with and without noise;
    "regression", for modification alone."""
    noise: str = "auto"
    """Source of the sites: "uniform" over the cell, "normal", or "none" where an initial structure is the source;
    "auto": the first of `NOISES_OF`."""
    task: str = "generate"
    """"generate": crystals from conditions alone; "modify": a more stable polymorph from a less stable one."""
    data: str = "prototypes"
    """Shipped data set by name, or path of an .npz."""
    source: str | None = None
    """Use only crystals with this "source" label."""
    max_sites: int = 60
    """Leave out larger cells."""
    min_polymorphs: int = 1
    """Leave out formulas with fewer crystals (7 in the paper)."""
    preset: str = "slim"
    """Network and recipe: "slim" (about 1 M parameters) or "paper" (305 M)."""
    max_steps: int = 3000
    """Optimizer steps."""
    batch_size: int = 128
    """Crystals a step (256 in A.3)."""
    lr: float = 2e-3
    """Peak learning rate (1e-4 in A.3)."""
    warmup: int = 200
    """Steps of linear warm-up before the cosine decay (500 in A.3)."""
    ema: float = 0.995
    """Decay of the averaged weights, which sample and are judged."""
    seed: int = 42
    """Seeds the split, the weights, the batches and the noise (A.3)."""
    device: str = "auto"
    """"auto": a GPU where there is one."""
    precision: str = "auto"
    """"auto": fp16 with loss scaling on a GPU (A.3), fp32 on a CPU."""
    length: int = 0
    """L of the crystal matrix; 0: the shortest that holds the data set's cells, 64 in the paper."""
    lattice: str = "composition"
    """"composition": lattice in units of a length known from the formula, standardized; "raw": angstrom (paper)."""
    site_scale: float = 12**0.5
    """Sites enter the network as (frac - 1/2) * site_scale; the root of 12 gives uniform sites unit variance. 1 where
    `lattice` is "raw", which takes them as they are."""
    site_species: bool = True
    """Species at each site's input channels, beside the paper's condition block."""
    place_channels: bool = True
    """Learned channels that say which site of its kind a row is."""
    site_waves: bool = True
    """Sine and cosine of the coordinates as input channels."""
    identity_embedding: bool = True
    """Learned embeddings of number of sites, space group and stoichiometry, beside the paper's condition block."""
    predict: str = "data"
    """What the network gives: "data", the crystal itself; "paper": the velocity in flow matching, the noise in
    diffusion. Regression gives the crystal in any case."""
    dropout: float = 0.1
    """Dropout in the residual blocks."""
    name_dropout: float = 0.3
    """Share of the training crystals whose elements are told by their properties alone."""
    energy_noise: float = 0.03
    """Standard deviation of noise on the energies in training, eV/atom."""
    torus: bool = False
    """Take coordinates the short way around the cell."""
    lattice_weight: float = 1.0
    """Weight of the lattice in the loss."""
    schedule: str = "squaredcos_cap_v2"
    """Noise schedule of diffusion; "linear": beta from 1e-4 to 0.02."""
    diffusion_steps: int = 1000
    """Training steps of the noise schedule."""
    eta: float = 0.0
    """Noise of DDIM: 0 is deterministic, 1 has the variance of DDPM."""
    clip: float = 0.0
    """Diffusion samplers clamp the predicted data to [-clip, clip]; 0: they do not (the paper's equations)."""
    condition_dropout: float = 0.0
    """Rate at which conditions are left open in training: all at once, and each alone. 0 is the paper's."""
    guidance: float = 1.0
    """Classifier-free guidance scale of the closing evaluation; 1: none. Needs `condition_dropout`."""
    pairing: str = "listed"
    """Sites of two polymorphs correspond as "listed", or as "nearest" in space."""
    pairs_per_group: int = 10
    """Most pairs of each kind that a group of polymorphs gives to an epoch."""
    origin_shifts: bool = False
    """Augmentation: move the origin by a random shift that the space group allows."""
    site_order: str = "canonical"
    """"random": shuffle the sites of each species at every step (what the canonical order is worth)."""
    mask_padding: bool = True
    """False: padding rows are noised and learned like sites (what the mask is worth)."""
    sampling_steps: int = 100
    """Steps of the sampler in the closing evaluation."""
    max_test: int = 400
    """Most test crystals of the closing evaluation, drawn with `seed`."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    validate_every: int = 250
    """Steps between losses on the validation formulas."""
    keep: int = 2
    """Newest checkpoints that are kept, beside the one with the lowest validation loss."""
    max_bad_steps: int = 20
    """Losses among the last 100 that may be not finite (their steps are left out) before the run ends."""
    stream: bool = False
    """Leave the crystals where the data set is, and read each batch while the one before is trained on."""
    compile: bool = False
    """torch.compile the network."""
    recompute: bool = False
    """Keep no activations inside the residual blocks and compute them again in the backward pass: less memory."""
    gradient_hook: str = "none"
    """"bf16": gradients travel between processes in bfloat16."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        if self.stream and self.task == "modify":
            raise ValueError("stream is for task generate: the pairs of task modify are drawn from memory")
        choices = {
            "algo": ALGORITHMS,
            "task": TASKS,
            "preset": tuple(RECIPES),
            "lattice": LATTICES,
            "precision": PRECISIONS,
            "schedule": SCHEDULES,
            "pairing": PAIRINGS,
            "predict": PREDICTIONS,
            "site_order": SITE_ORDERS,
            "gradient_hook": GRADIENT_HOOKS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        object.__setattr__(self, "noise", self._noise())
        counts = ("max_steps", "batch_size", "sampling_steps", "max_test", "checkpoint_every", "validate_every")
        for name in (*counts, "diffusion_steps", "pairs_per_group", "min_polymorphs", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.diffuses and self.sampling_steps > self.diffusion_steps:
            raise ValueError(
                f"sampling_steps must be in 1..{self.diffusion_steps}, the steps of the schedule, "
                f"got {self.sampling_steps}"
            )
        if self.diffuses:
            self._check_schedule()
        for name in ("lr", "site_scale", "lattice_weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")
        if self.max_bad_steps < 0:
            raise ValueError(f"max_bad_steps must be at least 0, got {self.max_bad_steps}")
        if not 1 <= self.max_sites <= 60:
            raise ValueError(f"max_sites must be in 1..60, got {self.max_sites}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.length % 8 or not 0 <= self.length <= 64:
            raise ValueError(f"length must be a multiple of 8 up to 64 (0: from the data), got {self.length}")
        for name in ("condition_dropout", "dropout", "name_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.energy_noise < float("inf"):
            raise ValueError(f"energy_noise must be at least 0 and finite, got {self.energy_noise}")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance must be at least 0 and finite, got {self.guidance}")
        if self.guidance != 1 and not self.condition_dropout:
            raise ValueError(
                f"guidance {self.guidance} needs a model trained with conditions left open: --condition-dropout 0.1"
            )
        if self.eta and self.algo != "ddim":
            raise ValueError(f"eta is DDIM's: --algo ddim, or eta 0, got eta {self.eta} with {self.algo}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")
        if not 0 <= self.clip < float("inf"):
            raise ValueError(f"clip must be at least 0 (0: off) and finite, got {self.clip}")
        if self.clip and self.clip < self.site_scale / 2:
            raise ValueError(
                f"clip {self.clip:g} would cut sites, which reach {self.site_scale / 2:.2f}: more, or 0 (off)"
            )
        self._refuse_idle()
        if self.origin_shifts and self.task == "modify":
            raise ValueError("origin_shifts would move the two structures of a pair apart: only with --task generate")

    def _check_schedule(self) -> None:
        """ValueError for a schedule that ends before the data are noise, from which sampling starts."""
        from fastcrystal.process.schedule import noise_schedule

        left = noise_schedule(self.schedule, self.diffusion_steps).alpha_bar[-1]
        if left > MAX_SIGNAL:
            raise ValueError(
                f"schedule {self.schedule} of {self.diffusion_steps} steps leaves {100 * left:.0f} % of the data's "
                "variance where sampling starts from noise: more diffusion_steps, or squaredcos_cap_v2"
            )

    def _refuse_idle(self) -> None:
        """ValueError for a setting that these algorithm, task and lattice would not heed."""
        idle = {
            "--algo cfm": (self.algo != "cfm", ("torus",)),
            "--algo ddpm or ddim": (not self.diffuses, ("schedule", "diffusion_steps", "clip")),
            "--task modify": (self.task != "modify", ("pairing", "pairs_per_group")),
        }
        for wanted, (unused, names) in idle.items():
            for name in names:
                value, usual = getattr(self, name), self.__dataclass_fields__[name].default
                if unused and value != usual:
                    raise ValueError(f"{name} {value} needs {wanted}; leave it at {usual}")
        if self.lattice == "raw" and self.site_scale != 1:
            raise ValueError(f"lattice raw takes sites as they are: site_scale 1, got {self.site_scale:g}")

    def _noise(self) -> str:
        """The noise asked for or, for "auto", the usual one; ValueError names the combinations that exist."""
        allowed = NOISES_OF.get((self.task, self.algo))
        if allowed is None:
            algorithms = ", ".join(a for task, a in NOISES_OF if task == self.task)
            raise ValueError(f"algo {self.algo} cannot {self.task}: --task {self.task} takes --algo {algorithms}")
        if self.noise == "auto":
            return allowed[0]
        if self.noise not in allowed:
            what = "no --noise: it starts from the initial structure" if allowed == ("none",) else ", ".join(allowed)
            raise ValueError(f"--task {self.task} --algo {self.algo} takes {what}, got noise {self.noise!r}")
        return self.noise

    def network(self, **measured: Any) -> UNetConfig:
        """The network of these settings; `measured` on the data: length, site_period, energy_mean, energy_std, ..."""
        from fastcrystal.model.config import PRESETS

        return replace(
            PRESETS[self.preset],
            dropout=self.dropout,
            site_species=self.site_species,
            place_channels=self.place_channels,
            site_waves=self.site_waves,
            identity_embedding=self.identity_embedding,
            initial=self.conditions_on_initial,
            **measured,
        )

    @property
    def diffuses(self) -> bool:
        """Whether the process is a diffusion."""
        return self.algo in ("ddpm", "ddim")

    @property
    def conditions_on_initial(self) -> bool:
        """Whether the network is told the initial structure (Palette), beside what it denoises."""
        return self.task == "modify" and self.diffuses

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> TrainConfig:
        """The recipe of `preset` with `overrides`.

        Raises
        ------
        ValueError
            If the preset is unknown, or a value cannot train.
        """
        if preset not in RECIPES:
            raise ValueError(f"preset must be one of {', '.join(RECIPES)}, got {preset!r}")
        if overrides.get("lattice") == "raw":
            overrides = {"site_scale": 1.0, **overrides}
        return cls(**{"preset": preset, **RECIPES[preset], **overrides})
