"""Training: configuration, batches, objective, loop, checkpoints."""
