"""Sampling: conditions in, crystals out."""
