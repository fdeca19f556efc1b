#!/usr/bin/env bash
# Make .venv with everything the project needs, or leave it alone if it is up to date.
# PYTHON=/path/to/python chooses the interpreter; otherwise the first of python3, python3.14 ... python3.11 that fits.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }

# An editable install remembers where it was made, so the place belongs to the stamp.
wanted="$(pwd -P) $(cat requirements.txt pyproject.toml | cksum)"
stamp=.venv/installed
if [[ -f $stamp && "$(cat "$stamp")" == "$wanted" ]] && fits .venv/bin/python; then
    exit 0
fi

if ! fits .venv/bin/python; then
    candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for python in "${candidates[@]}"; do
        if fits "$python"; then break; fi
        python=
    done
    if [[ -z $python ]]; then
        echo "setup: needs Python 3.11 to 3.14 and found none; install one, or name it: PYTHON=/path/to/python" >&2
        exit 1
    fi
    if ! "$python" -m venv --clear .venv >&2; then
        echo "setup: $python cannot make a virtual environment; install its venv module (Debian: python3-venv)" >&2
        exit 1
    fi
fi

echo "setup: installing the requirements into .venv (minutes, once)" >&2
install=(.venv/bin/python -m pip --disable-pip-version-check install --quiet --quiet) # errors only
# One call for all pins: a package that asks for any torch must not bring another build than the pinned one.
"${install[@]}" -r requirements.txt
"${install[@]}" --no-deps --editable .
echo "$wanted" >"$stamp"
