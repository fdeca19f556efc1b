#!/usr/bin/env bash
# From nothing to a sampled sentence: set up, train configs/quickstart.yaml, evaluate it, sample from it.
# Arguments override the configuration: bash scripts/quickstart.sh training.steps=500
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
run=checkpoints/quickstart
rnnsparse=(.venv/bin/python -m rnnsparse)

if [[ -f $run/summary.json ]]; then
    echo "$run is trained already (remove it to train again)"
elif [[ -d $run/last ]]; then
    echo "$run was interrupted: going on from its last checkpoint"
    "${rnnsparse[@]}" train configs/quickstart.yaml run.dir=$run "$@" --resume
else
    "${rnnsparse[@]}" train configs/quickstart.yaml run.dir=$run "$@"
fi
"${rnnsparse[@]}" evaluate $run
"${rnnsparse[@]}" sample $run --prompt "The " --length 300 --temperature 0.5 --seed 1
