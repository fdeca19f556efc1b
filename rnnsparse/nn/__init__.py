"""Sparse weights, the layers made of them, and the language model made of the layers."""
