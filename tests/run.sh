#!/usr/bin/env bash
# The project's checks: set-up, ruff, mypy, pytest. Arguments go to pytest (bash tests/run.sh -k checkpoint).
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
"$PYTHON" -m pytest "$@"
