#!/usr/bin/env bash
# What of a recipe helps a training that is short: the tiny model is trained for the same processor time again and again,
# one setting changed in each; then each paints the demonstration's masks, and the box's segmentor says how much of them
# it finds (docs/recipe.md).
#   bash demo/ablations.sh DATA LISTS OUT [ARM ...]
# DATA: a data set in images of 512 px; LISTS: folder of train.json and val.json (docs/small_model.md, step 3).
# BUDGET=180: seconds of processor time of each training. CORE=0: where it runs. COUNT=64: images painted.
# Started again, it goes on where it stopped. The table is OUT/table.md, the pictures OUT/ARM.png, some of each
# beside each other OUT/arms.jpg.
set -euo pipefail
[ $# -ge 3 ] || { sed -n 2,10p "$0" | cut -c3- >&2; exit 2; }
data=$(realpath "$1") lists=$(realpath "$2") out=$(realpath -m "$3")
shift 3
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
: "${BUDGET:=180}" "${CORE:=0}" "${COUNT:=64}"
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD
model=model.params train=data.params.train.params validation=data.params.validation.params box=demo/mbrsc
run() { taskset -c "$CORE" "$python" "$@"; }

# The parameterization decides most: so short a training by eps paints nothing that other options could be compared on.
declare -A changed=(
  [x0]=""
  [published]="$model.parameterization=eps"
  [v]="$model.parameterization=v"
  [v_zero_terminal_snr]="$model.parameterization=v $model.zero_terminal_snr=true"
  [zero_terminal_snr]="$model.zero_terminal_snr=true"
  [min_snr]="$model.loss_weighting=min_snr"
  [logit_normal]="$model.timestep_sampling=logit_normal"
  [small_crops]="$train.crop=32 data.params.batch_size=64 base_learning_rate=4.7e-5"
  [whole_images]="$train.size=64 $train.crop=null"
  [unlabeled]="$train.unlabeled=true"
  [elsewhere]="$train.reference_from=elsewhere"
  [shared_color]="$train.shared_color=1"
  [cached]=""
  [long_ema]="$model.ema_decay=0.999"
)
order=(x0 published v v_zero_terminal_snr zero_terminal_snr min_snr logit_normal small_crops whole_images unlabeled
  elsewhere shared_color cached long_ema)
[ $# -eq 0 ] || order=("$@")

processor_time() {  # of a process and of those that it has waited for, in seconds
  awk -v hz="$(getconf CLK_TCK)" '{sub(/.*\) /, ""); print int(($12 + $13 + $14 + $15) / hz)}' "/proc/$1/stat" 2>/dev/null || echo 0
}

mkdir -p "$out"
[ -e "$out/tiles/inference_set_items.json" ] || run demo/cut_crops.py --data-root $box --out "$out/tiles" --side 128
head -n "$COUNT" "$out/tiles/inference_set_items.json" > "$out/items.json"
grep source "$lists/train.json" > "$out/labeled.json"
for arm in "${order[@]}"; do
  folder=$out/logs/$arm list=$out/labeled.json
  read -ra settings <<< "${changed[$arm]}"
  [ "$arm" != unlabeled ] || list=$lists/train.json
  [ "$arm" != cached ] || settings=(--cache-latents "$out/latents")
  if [ ! -e "$folder/done" ]; then
    echo "== $arm: ${changed[$arm]:-as it is} ($(date +%T))"
    rm -rf "$folder"
    taskset -c "$CORE" "$python" -m scripts.train -n "$arm" --logdir "$out/logs" --base configs/train/tiny.yaml \
      --config-model configs/model/tisynth_tiny.yaml --data-root "$data" --train-txt-file "$list" \
      --val-txt-file "$lists/val.json" --gpus cpu $model.classes="$data/classes.json" $model.parameterization=x0 \
      $train.size=256 $train.crop=64 $validation.size=256 $validation.crop=64 data.params.num_workers=0 \
      lightning.trainer.max_steps=1000000 lightning.callbacks.image_logger.params.batch_frequency=1000000 \
      lightning.trainer.check_val_every_n_epoch=10 "${settings[@]}" > "$out/$arm.log" 2>&1 &
    pid=$!
    trap 'kill -TERM $pid 2>/dev/null; wait $pid; exit 143' TERM INT
    while kill -0 $pid 2>/dev/null && [ "$(processor_time $pid)" -lt "$BUDGET" ]; do sleep 1; done
    kill -TERM $pid 2>/dev/null || true  # it saves, and ends
    wait $pid || true
    trap - TERM INT
    [ -e "$folder/checkpoints/last.ckpt" ] || { tail -n 3 "$out/$arm.log" >&2; exit 1; }
    touch "$folder/done"
  fi
  [ -e "$out/$arm/done" ] || {
    run -m scripts.inference --config "$folder/config.yaml" --ckpt "$folder/checkpoints/last.ckpt" --use-ema \
      --data-root "$out/tiles" --txt-file "$out/items.json" --outdir "$out/$arm/images" --seed 0 --gpus cpu --num-workers 0 \
      --sampler dpmsolver++ --ddim-steps 20 --scale 1 --batch-size 16
    run -m scripts.contact_sheet --samples "$out/$arm/images" --data-root "$out/tiles" --items "$out/items.json" \
      --classes $box/classes.json --out "$out/$arm.png"
    run -m scripts.evaluate_samples $box/segmentor.py $box/segmentor.pth --real-img-path "$out/tiles/img_test" \
      --real-label-path "$out/tiles/label_test" --syn-img-path "$out/$arm/images" --syn-mask-path "$out/tiles/label_train" \
      --skip-invalid --train-img-path "$out/tiles/img_train" --num-workers 0 --out-dir "$out/$arm/evaluation"
    touch "$out/$arm/done"
  } >> "$out/$arm.log" 2>&1
done
run -m demo.ablations_table "$out" "${order[@]}"
run -m demo.ablations_picture "$out" "${order[@]}" --picture "$out/arms.jpg"
