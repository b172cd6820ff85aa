"""Crystals on disk and how they get there: packed data sets, splits, readers, the default set and its builder."""
