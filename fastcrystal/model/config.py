"""Settings of the network; the presets are in fastcrystal/training/presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastcrystal.utils.settings import Settings, check_choices


@dataclass(frozen=True)
class UNetConfig(Settings):
    """Settings of the network, which decide its weights."""

    model_channels: int = 32
    """Channels of the first level."""
    num_res_blocks: int = 1
    """Residual blocks per level on the way down; one more on the way up."""
    channel_mult: tuple[int, ...] = (1, 2, 2)
    """Channels of each level in units of `model_channels`; L halves between levels."""
    attention_resolutions: tuple[int, ...] = (1, 2, 4, 8)
    """Downsampling factors at which self-attention follows each residual block."""
    num_heads: int = 4
    """Attention heads."""
    norm_groups: int = 8
    """Groups of every GroupNorm."""
    embed_mult: int = 4
    """Width of the condition embedding in units of `model_channels`."""
    scale_shift: bool = True
    """Conditions scale and shift the second norm of a block; False adds them before it, as in the paper."""
    dropout: float = 0.0
    """Probability of dropout before the second convolution of a block."""
    condition_channels: tuple[int, int, int] = (32, 64, 128)
    """Widths of the element and space-group CNNs."""
    element_pool: Literal["mean", "flatten"] = "mean"
    """How rows become one vector: "mean" for any L; "flatten", the paper's, ties the network to `length`."""
    length: int = 64
    """L of the crystal matrix; 0 in the settings of a training: the shortest that holds the data set's cells."""
    site_species: bool = True
    """Give each row its species and kind as input channels. False is the paper's form: species only as a condition."""
    species_channels: int = 28
    """Channels of the species embedding where `site_species`; four more say what kind of row it is."""
    site_position_embedding: bool = False
    """16 learned channels that say where a row stands: the rank of its species, which of its kind it is, how many there
    are, and the row. Ties the network to matrices of at most `length` rows."""
    fourier_features: bool = False
    """Sine and cosine of the coordinates beside them: both ends of the cell look alike."""
    site_period: float = 1.0
    """Period of the site rows (`LatticeScaling.site_scale`), for `fourier_features`."""
    composition_embedding: bool = False
    """Learned embeddings of the number of sites (which the mean over sites forgets), of the space-group number, and of
    the stoichiometry, added to the condition embedding. Ties the network to matrices of at most `length` rows."""
    initial: bool = False
    """Take an initial structure (Palette, section 5.3): as extra channels beside x and through the coordinate condition
    block."""
    time_scale: float = 1000.0
    """Factor on t before the sinusoids."""
    energy_mean: float = 0.0
    """Mean formation energy of the training set, eV/atom."""
    energy_std: float = 1.0
    """Standard deviation of the formation energies of the training set, eV/atom."""
    change_mean: float = 0.0
    """Mean of E(target) - E(initial), eV/atom: rows with an initial structure tell the change instead of the energy."""
    change_std: float = 1.0
    """Standard deviation of E(target) - E(initial), eV/atom."""

    def __post_init__(self) -> None:
        """Turn JSON lists into tuples and refuse what cannot be built."""
        for name in ("channel_mult", "attention_resolutions", "condition_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 1 <= len(self.channel_mult) <= 4:
            raise ValueError(f"channel_mult must have 1 to 4 levels, got {self.channel_mult}")
        for name in ("norm_groups", "num_heads"):
            if self.model_channels % getattr(self, name):
                raise ValueError(
                    f"model_channels must be a multiple of {name}, got {self.model_channels} and {getattr(self, name)}"
                )
        if len(self.condition_channels) != 3:
            raise ValueError(f"condition_channels must be three widths, got {self.condition_channels}")
        check_choices(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for name in ("energy_std", "change_std", "site_period"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def embed_dim(self) -> int:
        """E, the width of the condition embedding."""
        return self.embed_mult * self.model_channels
