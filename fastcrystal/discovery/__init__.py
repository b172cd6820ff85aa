"""From conditions to ranked candidates: generation, relaxation, energies above the hull, DFT inputs, a report."""
