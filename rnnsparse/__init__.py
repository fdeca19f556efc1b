"""Sparse character-level recurrent language models, sparse from the first step to the last."""

__version__ = "0.1.0"
