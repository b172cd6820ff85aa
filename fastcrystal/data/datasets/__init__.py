"""Named data sets: the public ones, decorated prototypes, synthetic crystals."""
