"""Runs made of runs; a method that takes several says so by `recipe`, the name of a module here."""
