#!/usr/bin/env bash
# Filters the masks of synthesized images; arguments go to scripts/filter.py (see --help), margin 1.25 as published.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
if [ $# = 0 ]; then
  cat >&2 <<'END'
filter.sh needs a segmentor trained on real images (config, weights), real and synthesized images. After demo/run.sh:
  bash filter.sh demo/mbrsc/segmentor.py demo/mbrsc/segmentor.pth \
    --real-img-path demo/output/data/img_train --real-label-path demo/output/data/label_train \
    --syn-img-path demo/output/images --syn-mask-path demo/output/data/label_train --skip-invalid \
    --filtered-mask-path outputs/filtered
END
  exit 2
fi
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m scripts.filter --tolerance-margin 1.25 "$@"
