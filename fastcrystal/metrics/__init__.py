"""Generated crystals against true ones, and against chance and lookup."""
