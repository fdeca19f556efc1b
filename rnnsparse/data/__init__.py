"""Text to symbols to batches: where text comes from, how it is tokenized and kept, how training reads it."""
