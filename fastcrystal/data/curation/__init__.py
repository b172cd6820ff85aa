"""Curation of stores: the paper's selection (2.1), duplicates, near-duplicates, summaries."""
