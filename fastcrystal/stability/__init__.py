"""Stability: the convex hull of formation energies and its reference structures."""
