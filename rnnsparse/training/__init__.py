"""Training: the loop, optimizers, checkpoints, logging."""
