#!/usr/bin/env bash
# Keeps the filtered images that help; arguments go to scripts/resample.py (see --help).
here=$(cd "$(dirname "$0")" && pwd) || exit 1
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
if [ $# = 0 ]; then
  cat >&2 <<'END'
resample.sh needs filtered masks, their images, an output folder and a class table. After demo/run.sh:
  bash resample.sh --filtered-mask-path demo/output/filtered --syn-img-path demo/output/images \
    --out-dir outputs/resampled --classes demo/output/data/classes.json --inaccurate "road,water"
END
  exit 2
fi
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m scripts.resample "$@"
