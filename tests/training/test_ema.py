"""The average beside its formula."""

from __future__ import annotations

import torch

from fastcrystal.model.unet import CrystalUNet
from fastcrystal.training.ema import EMA
from tests.factories.tiny import TINY_NETWORK


def test_average_is_its_formula() -> None:
    model = CrystalUNet(TINY_NETWORK)
    ema = EMA(model, 0.25)
    wanted = {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(4):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.update(step)
        decay = min(0.25, (1 + step) / (10 + step))  # 0.1, 0.18, 0.25, 0.25
        wanted = {k: decay * wanted[k] + (1 - decay) * v for k, v in model.state_dict().items()}
        for k, v in ema.model.state_dict().items():
            torch.testing.assert_close(v, wanted[k])
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not ema.model.training
    assert model.training


def test_average_follows_weights_that_were_loaded() -> None:
    model, other = CrystalUNet(TINY_NETWORK), CrystalUNet(TINY_NETWORK)
    ema = EMA(model, 0.0)
    model.load_state_dict(other.state_dict())
    ema.update(100)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in ema.model.state_dict().items())
