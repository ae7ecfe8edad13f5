#!/usr/bin/env bash
# Does it help? The protocol of docs/proof.md, unattended: trains the synthesis model, paints every training mask,
# chooses the baseline's learning rate on tiles that are held out, filters, re-samples, and compares segmentors over
# several seeds: real images alone, free tricks, synthesized images. Started again, it goes on where it stopped; ended by
# a signal, it leaves no process behind.
#   bash demo/prove.sh DATA OUT
# DATA: img_train, label_train, img_test, label_test, ref_img, classes.json, and the lists train_set_items.json,
# val_set_items.json (or else test_set_items.json; a loss to look at, which chooses nothing), inference_set_items.json.
# Where it has img_target and label_target, scores of these, too. Settings, with their defaults for one GPU (about 50 M
# parameters); files are named from the repository:
#   MINUTES=20 MODEL=configs/model/tisynth_small.yaml SIZE=256 BATCH=16 PRECISION=bf16-mixed SAMPLES=2 STEPS=50 SCALE=2
#   SEGMENTOR=configs/mmseg/tiny.py CROP= SEEDS=5 ITERS=4000 JOBS=1 SPLITS="test target" (those in DATA) WORST=2 GPUS=0
#   CHOOSE= (folder with img_train, label_train, img_val, label_val; empty: the config's rate)
#   RATES="5e-4 1e-3 2e-3 4e-3" (rates to choose from) REPEAT=10 TREATMENT=ignore (or relabel, weight; see filter.sh)
#   LOOP=0 (rounds of improve.sh at the end, all parts together; SCENE: what names a place in files' names, see its --scene)
#   ARMS="real joint" (of weight: "real joint+weights") AMOUNTS= SHARES= (see compare --help)
#   BASE=configs/train/tiny.yaml (training's settings) RATE=1e-5 (of learning, times items a step) WORKERS=8
#   START="--grow demo/mbrsc/model.yaml --source demo/mbrsc/model.safetensors" (of init-checkpoint; empty: from nothing)
#   PAINTER="--config demo/mbrsc/model.yaml --ckpt demo/mbrsc/model.safetensors": a model that is trained already
#   LEARNING= (more settings of the synthesis model's training) PAINTING= (more options of inference.sh) FILTERING= (of
#   filter.sh) TRAINING= (of all segmentors' trainings and tests) COMPARING= (of compare)
set -euo pipefail
[ $# = 2 ] || { sed -n 2,21p "$0" | cut -c3- >&2; exit 2; }
data=$(realpath "$1") out=$(realpath -m "$2")
[ -z "${CHOOSE:-}" ] || CHOOSE=$(realpath "$CHOOSE")
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
: "${MINUTES:=20}" "${MODEL:=configs/model/tisynth_small.yaml}" "${SIZE:=256}" "${BATCH:=16}" "${PRECISION:=bf16-mixed}"
: "${SAMPLES:=2}" "${STEPS:=50}" "${SCALE:=2}" "${SEGMENTOR:=configs/mmseg/tiny.py}" "${SEEDS:=5}" "${ITERS:=4000}"
: "${JOBS:=1}" "${SPLITS:=}" "${WORST:=2}" "${GPUS:=0}" "${CROP:=}" "${CHOOSE:=}" "${REPEAT:=10}"
: "${RATES:=5e-4 1e-3 2e-3 4e-3}" "${AMOUNTS:=}" "${SHARES:=}" "${TREATMENT:=ignore}"
: "${PAINTER:=}" "${PAINTING:=}" "${TRAINING:=}" "${BASE:=configs/train/tiny.yaml}" "${RATE:=1e-5}" "${WORKERS:=8}"
: "${START:=}" "${LEARNING:=}" "${FILTERING:=}" "${COMPARING:=}" "${LOOP:=0}" "${SCENE:=}"
painted=joint  # of weight maps, the arm that uses them
[ "$TREATMENT" != weight ] || painted+=+weights
: "${ARMS:=real $painted}"
read -ra start <<< "$START"
read -ra painter <<< "$PAINTER"
read -ra painting <<< "$PAINTING"
read -ra training <<< "$TRAINING"
read -ra learning <<< "$LEARNING"
read -ra filtering <<< "$FILTERING"
read -ra comparing <<< "$COMPARING"
common=(--classes "$data/classes.json" --pretrained none ${CROP:+--crop-size "$CROP"} ${training[@]+"${training[@]}"})
tiles=(--data-root "$data" "${common[@]}")
name=$(basename "$SEGMENTOR")
say() { echo "== $* ($(date +%T))"; }
die() { echo "error: $*" >&2; exit 2; }
if [ -z "$SPLITS" ]; then SPLITS=test; [ ! -d "$data/img_target" ] || SPLITS="test target"; fi
for folder in img_train label_train ref_img $(for split in $SPLITS; do echo "img_$split label_$split"; done); do
  [ -d "$data/$folder" ] || die "$data: no folder $folder; see docs/your_data.md, and SPLITS for the sets to score"
done
[ -z "$CHOOSE" ] || for folder in img_train label_train img_val label_val; do
  [ -d "$CHOOSE/$folder" ] || die "CHOOSE=$CHOOSE: no folder $folder; import --split 0.6 0.2 0.2 makes a part to choose on"
done
grep -qs '"seeds"' "$data/inference_set_items.json" || for amount in $AMOUNTS; do  # a list with seeds says how many
  awk "BEGIN { exit !($amount < $SAMPLES) }" ||
    die "AMOUNTS: $amount for each real image are more than SAMPLES=$SAMPLES leave once some are filtered; raise SAMPLES"
done
for file in classes.json train_set_items.json inference_set_items.json; do
  [ -f "$data/$file" ] || die "$data: no $file; python -m scripts.import_data --references FOLDER writes it"
done
watched=$data/val_set_items.json
[ -f "$watched" ] || watched=$data/test_set_items.json
run_python() { "$python" -m common.processes "$BASHPID" "$python" "$@"; }  # ends with this script, by SIGKILL too
run_bash() { "$python" -m common.processes "$BASHPID" bash "$@"; }

mkdir -p "$out"
exec 9>>"$out/.lock"  # held until the last of this script's commands has ended
flock -n 9 || die "$out: $(cat "$out/.lock") is writing there; wait for its end, or name another folder"
echo "process $$ on $(uname -n)" > "$out/.lock"

# A file "done" says what was done: with other settings or files it is not this training any more. What was begun is
# said beside its folder: a stopped training ($3: the file by which it goes on) would go on with what it was begun by.
contents() { find -L "$@" -type f ! -name '.*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16; }
is_done() {
  local said=$1/done
  [ -e "$said" ] || [ ! -e "$1/$3" ] || said=$1.settings
  [ ! -e "$said" ] || [ "$(cat "$said")" = "$2" ] ||
    die "$said: of another training ($(cat "$said"); now $2); remove $1, or name another OUT"
  [ ! -e "$1/done" ] || return 0
  mkdir -p "$(dirname "$1")"
  echo "$2" > "$1.settings"
  return 1
}
set_done() { echo "$2" > "$1/.done"; mv "$1/.done" "$1/done"; }
tiles_sum=$(cd "$data" && contents img_train label_train classes.json)
data_sum=$(cd "$data" && contents img_train label_train classes.json train_set_items.json)

limit=$(printf "%02d:%02d:%02d:00" $((10#$MINUTES / 1440)) $((10#$MINUTES / 60 % 24)) $((10#$MINUTES % 60)))

run="$out/logs/synthesis"
settings="minutes $MINUTES, size $SIZE, batch $BATCH, $PRECISION, model $(contents "$MODEL"), data $data_sum"
settings+=", base $(contents "$BASE"), rate $RATE${START:+, start $START}${LEARNING:+, $LEARNING}"
batches=$(($(wc -l < "$data/train_set_items.json") / BATCH))  # of an epoch; what it watches and saves is by steps
every=$((225 / (batches > 0 ? batches : 1)))
every=$((every > 0 ? every : 1))
[ -n "$PAINTER" ] || say "synthesis model: $MINUTES minutes on $MODEL"
if [ -z "$PAINTER" ] && ! is_done "$run" "$settings" checkpoints/last.ckpt; then
  run_python -m demo.sizes "$data/label_train" "$SIZE"
  if [ -e "$run/checkpoints/last.ckpt" ]; then  # the time that it has trained is in the checkpoint, too
    run_python -m scripts.train --resume "$run" --gpus "$GPUS" lightning.trainer.max_time="$limit" \
      ${learning[@]+"${learning[@]}"}
  else
    rm -rf "$run"  # of a start that came to nothing
    if [ -n "$START" ]; then
      run_python -m scripts.init_checkpoint --config "$MODEL" --classes "$data/classes.json" "${start[@]}" \
        --out "$out/start.safetensors"
      start=(--pretrain-path "$out/start.safetensors")
    fi
    run_python -m scripts.train --base "$BASE" --config-model "$MODEL" ${start[@]+"${start[@]}"} -n synthesis \
      -l "$out/logs" \
      --data-root "$data" --train-txt-file "$data/train_set_items.json" --val-txt-file "$watched" \
      --gpus "$GPUS" --precision "$PRECISION" model.params.classes="$data/classes.json" \
      data.params.batch_size="$BATCH" data.params.num_workers="$WORKERS" base_learning_rate="$RATE" \
      data.params.train.params.size="$SIZE" data.params.validation.params.size="$SIZE" \
      lightning.trainer.check_val_every_n_epoch="$every" lightning.save_every_n_epochs="$every" \
      lightning.trainer.max_steps=-1 lightning.trainer.max_time="$limit" ${learning[@]+"${learning[@]}"}
  fi
  set_done "$run" "$settings"
fi

say "synthesized images"
[ -z "$PAINTER" ] || run_python -m demo.sizes "$data/label_train" "$SIZE"
[ -n "$PAINTER" ] || painter=(--config "$run/config.yaml" --use-ema --ckpt "$run/checkpoints/last.ckpt")
list=$(contents "$data/inference_set_items.json")
[ "$(cat "$out/images/.list" 2>/dev/null || echo "$list")" = "$list" ] ||
  die "$out/images: painted by another inference_set_items.json, whose images would join; remove it, or name another OUT"
mkdir -p "$out/images"
echo "$list" > "$out/images/.list"
run_python -m scripts.inference "${painter[@]}" --gpus "$GPUS" --data-root "$data" --outdir "$out/images" \
  --train-txt-file "$data/inference_set_items.json" --size "$SIZE" --num-samples "$SAMPLES" \
  --steps "$STEPS" --scale "$SCALE" ${painting[@]+"${painting[@]}"}

rate=
if [ -n "$CHOOSE" ]; then
  say "learning rate of the baseline, chosen on held-out tiles of the training set: $RATES"
  for value in $RATES; do
    run="$out/choose/rate_$value"
    settings="$ITERS iterations, crop ${CROP:-as configured}, segmentor $(contents "$SEGMENTOR")${TRAINING:+, $TRAINING}"
    settings+=", data $(cd "$CHOOSE" && contents img_train label_train img_val label_val)"
    if ! is_done "$run" "$settings" last_checkpoint; then
      held=("$SEGMENTOR" --data-root "$CHOOSE" "${common[@]}" --work-dir "$run"
        --cfg-options optim_wrapper.optimizer.lr="$value")
      run_python -m scripts.segmentor train "${held[@]}" --max-iters "$ITERS" --resume --val-split val \
        --val-interval $((ITERS / 20 > 0 ? ITERS / 20 : 1))
      run_python -m scripts.segmentor test "${held[@]}" --load-from "$(cat "$run/last_checkpoint")" --split val
      set_done "$run" "$settings"
    fi
  done
  # shellcheck disable=SC2086
  rate=$("$python" -m demo.choose "$out/choose" $RATES)
  say "learning rate $rate; has the baseline stopped rising? $out/choose/curves.svg"
  tiles+=(--cfg-options optim_wrapper.optimizer.lr="$rate")
fi

say "segmentor trained on real images"
settings="$ITERS iterations, segmentor $(contents "$SEGMENTOR"), data $tiles_sum"
settings+="${CROP:+, crop $CROP}${rate:+, rate $rate}${TRAINING:+, $TRAINING}"
if ! is_done "$out/segmentor" "$settings" last_checkpoint; then
  run_python -m scripts.segmentor train "$SEGMENTOR" "${tiles[@]}" --max-iters "$ITERS" --work-dir "$out/segmentor" \
    --resume
  set_done "$out/segmentor" "$settings"
fi
weights=$(cat "$out/segmentor/last_checkpoint")
# poorly recognized classes are chosen on the training set: the test sets choose nothing
run_python -m scripts.segmentor test "$SEGMENTOR" "${tiles[@]}" --load-from "$weights" --work-dir "$out/segmentor" \
  --split train

say "filter ($TREATMENT), re-sample, evaluate"
suffix=$([ "$TREATMENT" = ignore ] || echo "_$TREATMENT")$(printf %s "${FILTERING:+_$FILTERING}" | tr -c 'A-Za-z0-9.' _)
filtered=$out/filtered$suffix resampled=$out/resampled$suffix maps=()
[ "$TREATMENT" != weight ] || maps=(--weight-map-path "$out/weights")
pairs=(--syn-img-path "$out/images" --syn-mask-path "$data/label_train" --skip-invalid)  # not all masks need be listed
several=()  # as the user says of the same files
case " $TRAINING $FILTERING " in *" --several-maps "*) several=(--several-maps) ;; esac
run_bash filter.sh "$out/segmentor/$name" "$weights" --real-img-path "$data/img_train" \
  --real-label-path "$data/label_train" \
  "${pairs[@]}" --filtered-mask-path "$filtered" --treatment "$TREATMENT" "${maps[@]}" \
  ${filtering[@]+"${filtering[@]}"}
run_bash resample.sh --filtered-mask-path "$filtered" --syn-img-path "$out/images" --out-dir "$resampled" \
  --classes "$data/classes.json" --metrics "$out/segmentor/metrics.json" --worst "$WORST" "${maps[@]}" \
  ${several[@]+"${several[@]}"}
run_python -m scripts.evaluate_samples "$out/segmentor/$name" "$weights" --real-img-path "$data/img_${SPLITS%% *}" \
  --real-label-path "$data/label_${SPLITS%% *}" "${pairs[@]}" --train-img-path "$data/img_train" "$data/ref_img" \
  --out-dir "$out/evaluation" ${several[@]+"${several[@]}"}

say "comparison over $SEEDS seeds: $ARMS"
# shellcheck disable=SC2086
run_python -m scripts.compare "$SEGMENTOR" "${tiles[@]}" --synthesized "$resampled" --repeat "$REPEAT" \
  --seeds "$SEEDS" --jobs "$JOBS" --max-iters "$ITERS" --splits $SPLITS --out-dir "$out/comparison$suffix" --arms $ARMS \
  --references "$data/ref_img" ${AMOUNTS:+--amounts $AMOUNTS} ${SHARES:+--real-share $SHARES} \
  --syn-img-path "$out/images" --mask-path "$data/label_train" --filtered-mask-path "$filtered" \
  --evaluation "$out/evaluation" ${comparing[@]+"${comparing[@]}"}

if [ "$LOOP" -gt 0 ]; then
  say "closed loop: $LOOP rounds of improve.sh, all parts together"
  bands=() words=()  # what the loop gives to all is said to it alone
  for ((i = 0; i < ${#training[@]}; i++)); do
    case "${training[i]}" in
      --bands) bands=(--bands "${training[++i]}") ;;
      --bands=*) bands=(--bands "${training[i]#--bands=}") ;;
      *) words+=("${training[i]}") ;;
    esac
  done
  [ -z "$rate" ] || words+=(--cfg-options "optim_wrapper.optimizer.lr=$rate")
  [ "$TREATMENT" = ignore ] || FILTERING="--treatment $TREATMENT $FILTERING"
  # shellcheck disable=SC2086
  run_bash improve.sh "$data" "$out/loop" --recipe together --rounds "$LOOP" "${painter[@]}" --segmentor "$SEGMENTOR" \
    --gpus "$GPUS" --repeat "$REPEAT" --seeds "$SEEDS" --jobs "$JOBS" --worst "$WORST" --splits $SPLITS \
    ${SCENE:+--scene "$SCENE"} ${bands[@]+"${bands[@]}"} --filtering "${FILTERING% } ${several[*]-}" \
    --painting "--size $SIZE --steps $STEPS --scale $SCALE $PAINTING" \
    --training "--max-iters $ITERS --pretrained none ${CROP:+--crop-size $CROP} ${words[*]-}"
fi
