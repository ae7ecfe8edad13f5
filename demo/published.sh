#!/usr/bin/env bash
# What the published demo.sh does, once you have the weights: paints the masks of the published demonstration, a folder
# with masks, reference images and demo.json.
#   bash demo/published.sh GID_model.ckpt           other folders by DATA=..., OUT=..., LIST=..., CONFIG=...; options of
#   bash demo/published.sh GID_model.ckpt --seed 2  inference.sh come behind the weights
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
: "${DATA:=demo/GID_demo}" "${OUT:=synth_dataset/}" "${CONFIG:=$here/configs/model/tisynth_v15.yaml}"
: "${LIST:=$DATA/demo.json}"
if [ $# = 0 ]; then
  echo "published.sh needs the published weights: bash demo/published.sh TISynth_models/GID_model.ckpt
and the published folder GID_demo as $DATA (or DATA=...); docs/from_published.md says who keeps both" >&2
  exit 2
fi
weights=$1
shift
[ -e "$LIST" ] || { echo "error: $LIST: no such list; DATA=... names the published folder GID_demo" >&2; exit 2; }
exec bash "$here/inference.sh" --batch_size 1 --config "$CONFIG" --ckpt "$weights" --dataset GID26K --ddim_steps 50 \
  --seed 1 --outdir "$OUT" --txt_file "$LIST" --data_root "$DATA" "$@"
