"""Plots as PNG; the only place that knows matplotlib."""
