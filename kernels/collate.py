"""Numba for fastcrystal.data.collate: sites of flat arrays copied into a padded batch.

Serial on purpose: the copy is bound by memory, and 4,096 crystals take a fifth of a millisecond. A batch is also made
in a thread of a reader and before a fork, where the threads of numba must not be at work.
"""

import numba


@numba.njit(cache=True, nogil=True)
def pad(species, frac, first, count, padded_species, padded_frac):
    """Write sites first[i] .. first[i] + count[i] of `species` (S,) and `frac` (S, 3) into rows i (N,), (N, 3)."""
    width = padded_species.shape[1]
    for i in range(first.shape[0]):
        start, n = first[i], count[i]
        for k in range(n):
            padded_species[i, k] = species[start + k]
            padded_frac[i, k, 0] = frac[start + k, 0]
            padded_frac[i, k, 1] = frac[start + k, 1]
            padded_frac[i, k, 2] = frac[start + k, 2]
        for k in range(n, width):
            padded_species[i, k] = 0
            padded_frac[i, k, 0] = padded_frac[i, k, 1] = padded_frac[i, k, 2] = 0
