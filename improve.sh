#!/usr/bin/env bash
# The closed loop: paints where a segmentor is weak, trains it again; arguments go to scripts/improve.py (see --help).
here=$(cd "$(dirname "$0")" && pwd) || exit 1
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
if [ $# = 0 ]; then
  cat >&2 <<'END'
improve.sh needs a data set, an output folder, and a model that paints the data's classes. After demo/run.sh:
  bash improve.sh demo/output/data outputs/improved --config demo/mbrsc/model.yaml --ckpt demo/mbrsc/model.safetensors \
    --segmentor configs/mmseg/tiny_unet.py --scene "(t[0-9]+)_.*" --seeds 2 --rounds 2 \
    --painting "--sampler dpmsolver++ --ddim-steps 20 --scale 2 --mask-scale 2" \
    --training "--max-iters 120 --crop-size 128"
All options: bash improve.sh --help
END
  exit 2
fi
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m scripts.improve "$@"
