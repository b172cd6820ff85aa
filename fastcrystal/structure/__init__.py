"""Crystals as geometry: lattices, canonical form, formulas, distances, validity, matching."""
