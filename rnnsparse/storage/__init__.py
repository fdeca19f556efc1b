"""What is written and read: weights, checkpoints and exports. Nothing else knows what these look like on disk."""
