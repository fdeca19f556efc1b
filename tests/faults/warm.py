"""Loaded once by the server that all trainers are forked from: imports everything, and trains once to compile it."""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import torch

from rnnsparse.cli import main
from tests.faults.bench import write_inputs

torch.set_num_threads(1)
with (
    tempfile.TemporaryDirectory() as place,
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
):
    here = os.getcwd()
    write_inputs(Path(place))
    os.chdir(place)
    main(["train", "config.yaml"])
    os.chdir(here)
