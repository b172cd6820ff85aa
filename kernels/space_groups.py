"""Numba for fastcrystal.features.space_groups.

Serial on purpose: 2.8 MB are written in 0.1 ms by one thread. Under `parallel=True` the threads' barrier costs up to
20 ms on a busy machine (measured), and the table would then not be safe to build before a fork.
"""

import numba


@numba.njit(cache=True, nogil=True)
def pack(rotations, translations, offsets, fractions, out):
    """Write the affine matrices of every group into `out` (G + 1, 192, 4, 4); row 0 and unused slots are zero."""
    out[0] = 0
    for g in range(1, out.shape[0]):
        start = offsets[g - 1]
        order = offsets[g] - start
        for k in range(order):
            for i in range(3):
                for j in range(3):
                    out[g, k, i, j] = rotations[start + k, i, j]
                out[g, k, i, 3] = fractions[translations[start + k, i]]
                out[g, k, 3, i] = 0
            out[g, k, 3, 3] = 1
        out[g, order:] = 0
