# Sourced by demo/run.sh and tests/run.sh: makes .venv from requirements.txt once, and leaves its python in $PYTHON.
# A finished set-up is recognized by a stamp with the checksum of requirements.txt and reused.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { echo "error: $*" >&2; exit 1; }

find_python() {
  local name
  for name in ${TISYNTH_PYTHON:-} python3.11 python3.12 python3.10 python3; do
    "$name" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo "$name"; return; }
  done
  die "no Python 3.10, 3.11 or 3.12 with the venv module found: install one, or set TISYNTH_PYTHON to its path"
}

PYTHON=$PWD/.venv/bin/python
stamp=.venv/.requirements.sum
sum=$(cksum < requirements.txt)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$sum" ]; then
  base=$(find_python)
  echo "set-up: .venv with $("$base" --version) and requirements.txt (about 6 GB, a few minutes)"
  [ -x "$PYTHON" ] || "$base" -m venv .venv || die "could not make .venv: is the venv module of $base installed?"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt ||
    die "pip could not install requirements.txt (see above): check the network and free disk space, then start again"
  echo "$sum" > "$stamp"
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} NO_ALBUMENTATIONS_UPDATE=1
