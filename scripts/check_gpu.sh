#!/usr/bin/env bash
# All that takes an NVIDIA GPU, in at most fifteen minutes: the tests marked "cuda", then scripts/benchmark_gpu.py.
# Arguments go to pytest. PYTHON chooses the interpreter, by default python3; it must have torch >= 2.11 for CUDA, which
# stays as it is. What else it lacks of requirements.txt is installed, from the package index or, where there is no
# network, from wheels: PIP_NO_INDEX=1 PIP_FIND_LINKS=folder bash scripts/check_gpu.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

if ! "$python" -c 'import torch; torch.zeros(1, device="cuda")'; then
    echo "check_gpu: $python has no PyTorch that finds a GPU; name one that has: PYTHON=/path/to/python" >&2
    exit 1
fi
missing=$("$python" - <<'END'
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

for line in Path("requirements.txt").read_text().splitlines():
    name = re.split("[=# ]", line)[0]
    if name and not re.match("mypy|ruff|types-", name):  # these do not look at GPUs
        try:
            version(name)
        except PackageNotFoundError:
            print(line)
END
)
if [[ -n $missing ]]; then
    mapfile -t packages <<<"$missing"
    "$python" -m pip --disable-pip-version-check install --quiet "${packages[@]}"
fi

export PYTHONPATH=$PWD
status=0
timeout 300 "$python" -m pytest -m cuda tests/cuda "$@" || status=$?
timeout 590 "$python" scripts/benchmark_gpu.py || status=$?
exit $status
