#!/usr/bin/env bash
# The closed loop: paints where a segmentor is weak, trains it again; arguments go to scripts/improve.py (see --help).
here=$(cd "$(dirname "$0")" && pwd) || exit 1
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
if [ $# = 0 ]; then
  cat >&2 <<'END'
improve.sh needs a data set, an output folder, and a model that paints. With the one that comes along, at its 128 px:
  bash improve.sh DATA OUT --config demo/mbrsc/model.yaml --ckpt demo/mbrsc/model.safetensors --painting "--ddim-steps 20"
All options: bash improve.sh --help
END
  exit 2
fi
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m scripts.improve "$@"
