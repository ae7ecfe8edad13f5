#!/usr/bin/env bash
# The project's checks: set-up, ruff and its format, mypy, pytest. Arguments go to pytest (bash tests/run.sh -k checkpoint).
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check --quiet .
"$PYTHON" -m mypy
# a file is tested by one process: its tests share what its fixtures made; the longest first, see tests/conftest.py
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n "${TEST_PROCESSES:-$(nproc)}" --dist loadfile --no-loadscope-reorder "$@"
