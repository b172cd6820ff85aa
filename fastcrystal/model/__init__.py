"""The denoiser: a 1-D UNet and its condition block."""
