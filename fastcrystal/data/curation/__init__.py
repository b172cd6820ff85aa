"""What becomes of imported crystals: near-duplicates, the paper's selection (2.1), and a page to look at."""
