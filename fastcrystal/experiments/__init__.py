"""The experiments of the project: runs from start to end, the paper's tables and figures, ablations."""
