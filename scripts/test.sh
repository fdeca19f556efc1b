#!/usr/bin/env bash
# Every check: format, lint, types, tests. Arguments go to pytest: bash scripts/test.sh -k rigl
# With --quick first, only the tests that neither start processes nor train for long: a minute on two cores,
# half as much again when it first compiles the kernels.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
if [[ ${1:-} == --quick ]]; then
    shift
    left_out=(--deselect tests/test_cli.py --deselect tests/test_readme.py)
    left_out+=(--deselect tests/test_wheel.py --deselect tests/sparsity/test_tickets.py)
    set -- tests/nn tests/sparsity tests/data tests/test_*.py "${left_out[@]}" "$@"
fi
python=.venv/bin/python

"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy rnnsparse
# A process a core, each with one thread; a file's tests share what they have trained, so they stay together.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$python" -m pytest -n auto --dist loadfile "$@"
