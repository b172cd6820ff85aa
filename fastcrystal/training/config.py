"""Settings of a training run: nested parts, written to RUN/config.json. Presets are TOML files beside this module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from fastcrystal.model.config import UNetConfig
from fastcrystal.model.scaling import LatticeScaling, Mode
from fastcrystal.process.diffusion import Diffusion
from fastcrystal.process.flow import FlowMatching
from fastcrystal.process.regression import Regression
from fastcrystal.process.samplers import Precision, SamplingConfig, sampler_of
from fastcrystal.utils.settings import KIND, Settings, check_choices, checked_choice, load_toml, merge

Algorithm = Literal["cfm", "ddpm", "ddim", "regression"]
Task = Literal["generate", "modify"]
ProcessConfig = FlowMatching | Diffusion | Regression

ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
TASKS: tuple[Task, ...] = get_args(Task)
PRESETS = ("slim", "paper")

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
#: the process of each algorithm
PROCESS_OF: dict[str, type[FlowMatching] | type[Diffusion] | type[Regression]] = {
    "cfm": FlowMatching,
    "ddpm": Diffusion,
    "ddim": Diffusion,
    "regression": Regression,
}
#: fields that a run fills in when it starts, from its task and its data set
MEASURED: dict[str, tuple[str, ...]] = {
    "model": ("site_period", "initial", "energy_mean", "energy_std", "change_mean", "change_std"),
    "process": ("site_scale", "site_offset", "lattice_noise"),
}
#: their full names
HIDDEN = frozenset(f"{part}.{name}" for part, names in MEASURED.items() for name in names)


@dataclass(frozen=True)
class DataConfig(Settings):
    """The data set, and how its crystals are encoded and drawn."""

    name: str = "prototypes"
    """Shipped data set by name, or path of an .npz, a store or a view."""
    source: str | None = None
    """Use only crystals with this "source" label."""
    max_sites: int = 60
    """Leave out larger cells."""
    min_polymorphs: int = 1
    """Leave out formulas with fewer crystals (7 in the paper)."""
    max_test: int = 400
    """Most test crystals of the closing evaluation, drawn with the seed."""
    lattice: Mode = "composition"
    """"composition": lattice in units of a length known from the formula, standardized; "raw": angstrom (paper)."""
    site_scale: float | None = None
    """Sites enter the network as (frac - 1/2) * site_scale. None: the root of 12, which gives uniform sites unit
    variance, or 1 where `lattice` is "raw", which takes sites as they are."""
    site_order: Literal["canonical", "random"] = "canonical"
    """"random": shuffle the sites of each species at every step (an ablation)."""
    mask_padding: bool = True
    """False: padding is noised and learned like sites (an ablation)."""
    origin_shifts: bool = False
    """Augmentation: move the origin by a random shift that the space group allows."""
    pairing: Literal["listed", "nearest"] = "listed"
    """Sites of two polymorphs correspond as "listed", or as "nearest" in space."""
    pairs_per_group: int = 10
    """Most pairs of each kind that a group of polymorphs gives to an epoch."""
    stream: bool = False
    """Leave the crystals where the data set is, and read each batch while the one before is trained on."""

    def __post_init__(self) -> None:
        """Refuse what cannot be used; fill in `site_scale`."""
        check_choices(self)
        raw = self.lattice == "raw"
        if self.site_scale is None:
            object.__setattr__(self, "site_scale", 1.0 if raw else 12**0.5)
        _at_least_one(self, "max_test", "pairs_per_group", "min_polymorphs")
        _positive("site_scale", self.scale)
        if not 1 <= self.max_sites <= 60:
            raise ValueError(f"max_sites must be in 1..60, got {self.max_sites}")
        if raw and self.scale != 1:
            raise ValueError(f"lattice raw takes sites as they are: site_scale 1, got {self.scale:g}")

    @property
    def scale(self) -> float:
        """`site_scale`, which is a number once the settings are made."""
        assert self.site_scale is not None
        return self.site_scale


@dataclass(frozen=True)
class OptimConfig(Settings):
    """Adam, the learning rate, and the average of the weights."""

    lr: float = 2e-3
    """Peak learning rate (1e-4 in A.3)."""
    warmup: int = 200
    """Steps of linear warm-up before the cosine decay (500 in A.3)."""
    ema: float = 0.995
    """Decay of the averaged weights, which sample and are evaluated."""
    max_bad_steps: int = 20
    """Losses among the last 100 that may be not finite (their steps are left out) before the run ends."""
    gradient_hook: Literal["none", "bf16"] = "none"
    """"bf16": gradients travel between processes in bfloat16."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        check_choices(self)
        _positive("lr", self.lr)
        for name in ("warmup", "max_bad_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        _rate(self, "ema")


@dataclass(frozen=True)
class RegularizationConfig(Settings):
    """Noise on the conditions in training."""

    element_dropout: float = 0.3
    """Share of the training crystals whose elements enter by their properties alone, without their identity."""
    energy_noise: float = 0.03
    """Standard deviation of noise on the energies, eV/atom."""
    condition_dropout: float = 0.0
    """Rate at which training is unconditional: in all conditions at once, and in each alone. 0 is the paper's."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        _rate(self, "element_dropout", "condition_dropout")
        if not 0 <= self.energy_noise < math.inf:
            raise ValueError(f"energy_noise must be at least 0 and finite, got {self.energy_noise}")


@dataclass(frozen=True)
class TrainerConfig(Settings):
    """The training loop: how long, where, and what it leaves on the way."""

    max_steps: int = 3000
    """Optimizer steps."""
    batch_size: int = 128
    """Crystals a step (256 in A.3)."""
    seed: int = 42
    """Seeds the split, the weights, the batches and the noise (A.3)."""
    device: str = "auto"
    """"auto": a GPU where there is one."""
    precision: Precision = "auto"
    """"auto": fp16 with loss scaling on a GPU (A.3), fp32 on a CPU."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    validate_every: int = 250
    """Steps between losses on the validation formulas."""
    keep: int = 2
    """Newest checkpoints that are kept, beside the one with the lowest validation loss."""
    compile: bool = False
    """torch.compile the network."""
    recompute: bool = False
    """Keep no activations inside the residual blocks and compute them again in the backward pass: less memory."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        check_choices(self)
        _at_least_one(self, "max_steps", "batch_size", "checkpoint_every", "validate_every", "keep")


@dataclass(frozen=True)
class RunConfig(Settings):
    """Settings of a run; `RunConfig.from_preset` makes them."""

    task: Task
    """"generate": crystals from conditions alone; "modify": a more stable polymorph from a less stable one."""
    preset: str
    """Where the network and recipe began: "slim" (about 1 M parameters) or "paper" (305 M)."""
    model: UNetConfig
    """The network."""
    process: FlowMatching | Diffusion | Regression
    """Flow matching, diffusion or regression."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    regularization: RegularizationConfig = field(default_factory=RegularizationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampler of the closing evaluation, and of the model where nothing else is asked for."""

    def __post_init__(self) -> None:
        """Refuse parts that do not go together."""
        check_choices(self)
        algorithms = [name for task, name in NOISES_OF if task == self.task]
        if self.algo not in algorithms:
            raise ValueError(
                f"algo {self.algo} cannot {self.task}: --task {self.task} takes --algo {', '.join(algorithms)}"
            )
        if self.model.length % 8 or not 0 <= self.model.length <= 64:
            raise ValueError(f"length must be a multiple of 8 up to 64 (0: from the data), got {self.model.length}")
        _positive("lattice_weight", self.process.lattice_weight)
        sampler_of(self.process, self.sampling)
        if isinstance(self.process, Diffusion):
            self._check_schedule(self.process)
        if self.sampling.guidance != 1 and not self.regularization.condition_dropout:
            raise ValueError(
                f"guidance {self.sampling.guidance} needs a model trained without conditions, too: "
                "--set regularization.condition_dropout=0.1"
            )
        modify = self.task == "modify"
        if modify and self.data.stream:
            raise ValueError("stream is for task generate: the pairs of task modify are drawn from memory")
        if modify and self.data.origin_shifts:
            raise ValueError("origin_shifts would move the two structures of a pair apart: only with --task generate")
        for name in ("pairing", "pairs_per_group"):
            value, usual = getattr(self.data, name), getattr(DataConfig(), name)
            if not modify and value != usual:
                raise ValueError(f"{name} {value} needs --task modify; leave it at {usual}")

    def _check_schedule(self, process: Diffusion) -> None:
        """ValueError for steps or a clip that do not suit the schedule, or one that ends before the data are noise."""
        steps, clip, reach = self.sampling.steps, self.sampling.clip, self.data.scale / 2
        if steps > process.training_steps:
            raise ValueError(
                f"sampling.steps must be in 1..{process.training_steps}, the steps of the schedule, got {steps}"
            )
        if clip and clip < reach:
            raise ValueError(f"clip {clip:g} would cut sites, which reach {reach:.2f}: more, or 0 (off)")
        left = process.noise_schedule.alpha_bar[-1]
        if left > MAX_SIGNAL:
            raise ValueError(
                f"schedule {process.schedule} of {process.training_steps} steps leaves {100 * left:.0f} % of the "
                "data's variance where sampling starts from noise: more training_steps, or squaredcos_cap_v2"
            )

    @classmethod
    def from_preset(
        cls, preset: str = "slim", *, task: str = "generate", algo: str = "cfm", noise: str | None = None, **parts: Any
    ) -> RunConfig:
        """The recipe of a preset, with changes.

        Parameters
        ----------
        preset : {"slim", "paper"}
        task : {"generate", "modify"}
        algo : {"cfm", "ddpm", "ddim", "regression"}
            "ddpm" and "ddim" are trained alike and sampled with and without noise.
        noise : {"uniform", "normal"}, optional
            Source of the sites; the first of `NOISES_OF` where not given.
        **parts
            Changes by part: trainer={"max_steps": 100}, optim={"lr": 1e-3}.

        Raises
        ------
        ValueError
            If a name or choice is unknown (with the nearest one), a value has another type or cannot train, or a part
            lacks a setting that is given.
        """
        checked_choice(preset, PRESETS, "preset")
        task, algo = checked_choice(task, TASKS, "task"), checked_choice(algo, ALGORITHMS, "algo")
        kind = PROCESS_OF[algo]
        own = {f.name for f in fields(kind)}
        parts = {k: dict(v) if isinstance(v, Mapping) else v for k, v in parts.items()}
        asked = parts.setdefault("process", {})
        if not isinstance(asked, dict):
            raise ValueError(f"process is a group of settings: {', '.join(sorted(own))}; got {asked!r}")
        refuse_measured(parts)
        _check_process(asked, algo)
        noise = _noise(task, algo, noise if noise is not None else asked.pop("noise", None))
        values = preset_values(preset)
        values["model"]["initial"] = _knows_initial(task, kind)
        values["process"] = {KIND: kind.__name__, **{k: v for k, v in values.get("process", {}).items() if k in own}}
        if kind is FlowMatching and noise != "none":
            values["process"]["noise"] = noise
        values["sampling"] = {"sampler": algo if kind is Diffusion else "auto", **values.get("sampling", {})}
        return cls.from_dict({"task": task, "preset": preset, **merge(values, parts)})

    def with_data(self, length: int, scaling: LatticeScaling, **measured: Any) -> RunConfig:
        """These settings for a data set: what is measured on it filled in.

        Parameters
        ----------
        length : int
            L of the crystal matrix.
        scaling : LatticeScaling
            Fitted to the training crystals.
        **measured : float
            `energy_mean`, `energy_std`, `change_mean` and `change_std` of `UNetConfig`.
        """
        model = replace(self.model, length=length, site_period=scaling.site_scale, **measured)
        process: ProcessConfig = self.process
        if not isinstance(process, Diffusion):
            process = replace(process, site_scale=scaling.site_scale, site_offset=scaling.site_offset)
        if isinstance(process, FlowMatching):  # standardized lattices start from normal noise, raw ones as the sites do
            process = replace(process, lattice_noise="normal" if scaling.standardized else "same")
        return replace(self, model=model, process=process)

    @property
    def algo(self) -> Algorithm:
        """The algorithm, by the word of the command line."""
        if isinstance(self.process, Diffusion):
            return "ddim" if self.sampling.sampler == "ddim" else "ddpm"
        return "cfm" if isinstance(self.process, FlowMatching) else "regression"

    @property
    def noise(self) -> str:
        """Source of the sites: "uniform", "normal", or "none" where it is the initial structure."""
        allowed = NOISES_OF[self.task, self.algo]
        return self.process.noise if isinstance(self.process, FlowMatching) and len(allowed) > 1 else allowed[0]

    @property
    def diffuses(self) -> bool:
        """Whether the process is a diffusion."""
        return isinstance(self.process, Diffusion)

    @property
    def predicts_data(self) -> bool:
        """Whether the network gives the crystal itself, not a velocity or noise."""
        return isinstance(self.process, Regression) or self.process.predict == "data"


def preset_values(preset: str) -> dict[str, Any]:
    """The TOML file of a preset."""
    return load_toml(Path(str(resources.files("fastcrystal.training").joinpath(f"presets/{preset}.toml"))))


def refuse_measured(parts: Mapping[str, Any]) -> None:
    """ValueError for a setting that a run fills in by itself."""
    for part, names in MEASURED.items():
        asked = parts.get(part, {})
        given = [name for name in names if isinstance(asked, Mapping) and name in asked]
        if given:
            raise ValueError(f"{part}.{given[0]} follows from the task and the data set: leave it out")


def _knows_initial(task: str, kind: type) -> bool:
    """Whether the network sees the initial structure (Palette) beside what it denoises."""
    return task == "modify" and kind is Diffusion


def _check_process(asked: Mapping[str, Any], algo: str) -> None:
    """ValueError for a setting that this algorithm's process lacks and another has."""
    kind = PROCESS_OF[algo]
    own = [f.name for f in fields(kind) if f.name not in MEASURED["process"]]
    if asked.get(KIND, kind.__name__) != kind.__name__:
        raise ValueError(f"process.{KIND} of --algo {algo} is {kind.__name__}, got {asked[KIND]!r}")
    for name in asked:
        others = [a for a, other in PROCESS_OF.items() if name in {f.name for f in fields(other)}]
        if name not in (KIND, "noise") and name not in own and others:
            raise ValueError(
                f"process.{name} needs --algo {' or '.join(others)}: the process of --algo {algo} has {', '.join(own)}"
            )


def _noise(task: str, algo: str, noise: str | None) -> str:
    """The noise asked for, or the usual one; ValueError names the combinations that exist."""
    allowed = NOISES_OF.get((task, algo))
    if allowed is None:
        algorithms = ", ".join(a for t, a in NOISES_OF if t == task)
        raise ValueError(f"algo {algo} cannot {task}: --task {task} takes --algo {algorithms}")
    if noise is None or noise == "auto":
        return allowed[0]
    if noise not in allowed:
        what = "no --noise: it starts from the initial structure" if allowed == ("none",) else ", ".join(allowed)
        raise ValueError(f"--task {task} --algo {algo} takes {what}, got noise {str(noise)!r}")
    return noise


def _at_least_one(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _rate(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {getattr(config, name)}")
