"""Discovery of crystals: conditions, generation, relaxation, energies above the hull, DFT inputs, a report."""
