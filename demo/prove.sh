#!/usr/bin/env bash
# Does it help? Unattended: trains the synthesis model, paints every training mask, filters, re-samples, and compares
# segmentors with and without the synthesised images over several seeds. Started again, it goes on where it stopped.
#   bash demo/prove.sh DATA OUT
# DATA: img_train, label_train, img_test, label_test, ref_img, classes.json, and the lists train_set_items.json,
# test_set_items.json, inference_set_items.json. Settings, with their defaults for one GPU (about 50 M parameters); files
# are named from the repository:
#   MINUTES=20 MODEL=configs/model/tisynth_small.yaml SIZE=256 BATCH=16 PRECISION=bf16-mixed SAMPLES=2 STEPS=50 SCALE=2
#   SEGMENTOR=configs/mmseg/tiny.py SEEDS=5 ITERS=4000 JOBS=1 SPLITS="test target" WORST=2 GPUS=0
set -euo pipefail
[ $# = 2 ] || { sed -n 2,9p "$0" | cut -c3- >&2; exit 2; }
data=$(realpath "$1") out=$(realpath -m "$2")
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
: "${MINUTES:=20}" "${MODEL:=configs/model/tisynth_small.yaml}" "${SIZE:=256}" "${BATCH:=16}" "${PRECISION:=bf16-mixed}"
: "${SAMPLES:=2}" "${STEPS:=50}" "${SCALE:=2}" "${SEGMENTOR:=configs/mmseg/tiny.py}" "${SEEDS:=5}" "${ITERS:=4000}"
: "${JOBS:=1}" "${SPLITS:=test target}" "${WORST:=2}" "${GPUS:=0}"
tiles=(--data-root "$data" --classes "$data/classes.json" --pretrained none)
name=$(basename "$SEGMENTOR")
say() { echo "== $* ($(date +%T))"; }

limit=$(printf "%02d:%02d:%02d:00" $((10#$MINUTES / 1440)) $((10#$MINUTES / 60 % 24)) $((10#$MINUTES % 60)))

say "synthesis model: $MINUTES minutes on $MODEL"
run="$out/logs/synthesis"
if [ ! -e "$run/done" ]; then
  if [ -e "$run/checkpoints/last.ckpt" ]; then  # the time that it has trained is in the checkpoint, too
    "$python" -m scripts.train --resume "$run" --gpus "$GPUS" lightning.trainer.max_time="$limit"
  else
    rm -rf "$run"  # of a start that came to nothing
    "$python" -m scripts.train --base configs/train/tiny.yaml --config_model "$MODEL" -n synthesis -l "$out/logs" \
      --data_root "$data" --train_txt_file "$data/train_set_items.json" --val_txt_file "$data/test_set_items.json" \
      --gpus "$GPUS" --precision "$PRECISION" model.params.classes="$data/classes.json" \
      data.params.batch_size="$BATCH" data.params.num_workers=8 base_learning_rate=1e-5 \
      data.params.train.params.size="$SIZE" data.params.validation.params.size="$SIZE" \
      lightning.trainer.check_val_every_n_epoch=25 lightning.trainer.max_steps=-1 lightning.trainer.max_time="$limit"
  fi
  touch "$run/done"
fi

say "synthesised images"
"$python" -m scripts.inference --config "$run/config.yaml" --use_ema --gpus "$GPUS" \
  --ckpt "$run/checkpoints/last.ckpt" --data_root "$data" --outdir "$out/images" --size "$SIZE" \
  --train_txt_file "$data/inference_set_items.json" --num_samples "$SAMPLES" --steps "$STEPS" --scale "$SCALE"

say "segmentor trained on real images"
if [ ! -e "$out/segmentor/done" ]; then
  "$python" -m scripts.segmentor train "$SEGMENTOR" "${tiles[@]}" --max-iters "$ITERS" --work-dir "$out/segmentor" --resume
  touch "$out/segmentor/done"
fi
weights=$(cat "$out/segmentor/last_checkpoint")
# poorly recognised classes are chosen on the training set: the test sets choose nothing
"$python" -m scripts.segmentor test "$SEGMENTOR" "${tiles[@]}" --load-from "$weights" --work-dir "$out/segmentor" --split train

say "filter, re-sample, evaluate"
pairs=(--syn-img-path "$out/images" --syn-mask-path "$data/label_train")
bash filter.sh "$out/segmentor/$name" "$weights" --real-img-path "$data/img_train" --real-label-path "$data/label_train" \
  "${pairs[@]}" --filtered-mask-path "$out/filtered"
bash resample.sh --filtered-mask-path "$out/filtered" --syn-img-path "$out/images" --out-dir "$out/resampled" \
  --classes "$data/classes.json" --metrics "$out/segmentor/metrics.json" --worst "$WORST"
"$python" -m scripts.evaluate_samples "$out/segmentor/$name" "$weights" --real-img-path "$data/img_test" \
  --real-label-path "$data/label_test" "${pairs[@]}" --train-img-path "$data/img_train" "$data/ref_img" \
  --out-dir "$out/evaluation"

say "comparison over $SEEDS seeds"
# shellcheck disable=SC2086
"$python" -m scripts.compare "$SEGMENTOR" "${tiles[@]}" --synthesised "$out/resampled" --seeds "$SEEDS" --jobs "$JOBS" \
  --max-iters "$ITERS" --splits $SPLITS --out-dir "$out/comparison" --syn-img-path "$out/images" \
  --mask-path "$data/label_train" --filtered-mask-path "$out/filtered" --evaluation "$out/evaluation"
