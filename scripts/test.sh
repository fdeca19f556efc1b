#!/usr/bin/env bash
# Every check: format, lint, types, tests. Arguments go to pytest: bash scripts/test.sh -k rigl
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
python=.venv/bin/python

"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy rnnsparse
"$python" -m pytest "$@"
