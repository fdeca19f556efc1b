#!/usr/bin/env bash
# Inject every kind of fault into trainings, then foreign and random inputs into every command; print tables.
# Exit code 1 if anything was lost. Arguments go to the first: bash scripts/faults.sh --only SIGKILL
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS=1

.venv/bin/python -m tests.faults "$@"
.venv/bin/python -m tests.fuzz --seconds 600
