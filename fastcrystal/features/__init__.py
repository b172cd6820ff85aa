"""Elements and space groups as model inputs: lookup tables."""
