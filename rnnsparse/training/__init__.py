"""Training: a step (`step`), the loop around it (`trainer`), and the run's folder that it is recorded in (`run`).

`build` and `start` make their parts from a configuration, once; `train` hands these in.
"""
