#!/usr/bin/env bash
# Synthesizes images with the published settings; arguments are those of scripts/inference.py (bash inference.sh --help).
here=$(cd "$(dirname "$0")" && pwd) || exit 1
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
if [ $# -eq 0 ]; then
  echo "inference.sh needs weights (--ckpt), --data-root, --train-txt-file (items with ref_image) and --outdir.
All options: bash inference.sh --help. An example that runs, after bash demo/run.sh:
  bash inference.sh --config demo/mbrsc/model.yaml --ckpt demo/mbrsc/model.safetensors \\
    --data-root demo/output/data --train-txt-file demo/output/data/inference_set_items.json \\
    --outdir demo/output/example --ddim-steps 20 --scale 2 --mask-scale 2 --seed 7" >&2
  exit 2
fi
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m scripts.inference "$@"
