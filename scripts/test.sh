#!/usr/bin/env bash
# Every check: format, lint, types, tests. Arguments go to pytest: bash scripts/test.sh -k rigl
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
python=.venv/bin/python

"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy rnnsparse
# A process a core, each with one thread; a file's tests share what they have trained, so they stay together.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$python" -m pytest -n auto --dist loadfile "$@"
