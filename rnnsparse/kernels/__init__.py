"""Arithmetic on connections: compiled loops over arrays, no modules, no autograd."""
