"""Relaxation of crystals with interatomic potentials."""
