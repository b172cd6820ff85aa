"""Space-group symmetry of crystals."""
