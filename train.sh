#!/usr/bin/env bash
# Trains TISynth with the published settings; arguments are those of scripts/train.py (bash train.sh --help).
here=$(cd "$(dirname "$0")" && pwd) || exit 1
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
if [ $# -eq 0 ]; then
  echo "train.sh needs a run's name (-n), --data-root, --train-txt-file and --val-txt-file, and weights to start from
(--pretrain-path). All options: bash train.sh --help. An example that runs, after bash demo/run.sh:
  bash train.sh --base configs/train/tiny.yaml --config-model configs/model/tisynth_tiny.yaml -n example \\
    --data-root demo/output/data --train-txt-file demo/output/data/train_set_items.json \\
    --val-txt-file demo/output/data/test_set_items.json model.params.classes=demo/output/data/classes.json" >&2
  exit 2
fi
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m scripts.train "$@"
