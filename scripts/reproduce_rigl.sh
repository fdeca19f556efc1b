#!/usr/bin/env bash
# Train and compare the methods of the RigL paper on a character-level GRU: table, plots and report.html.
#   bash scripts/reproduce_rigl.sh          a small network and 10 million characters: hours on two CPU cores
#   bash scripts/reproduce_rigl.sh full     the paper's network and length: for GPUs
# Settings for every run may follow, such as data.path=FOLDER. Started again, it goes on where it was interrupted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
name=reproduce_rigl_short
if [[ ${1:-} == full ]]; then
    name=reproduce_rigl
    shift
fi
.venv/bin/python -m rnnsparse sweep configs/sweeps/$name.yaml "$@"
.venv/bin/python -m rnnsparse compare checkpoints/$name --test --out checkpoints/$name-results
