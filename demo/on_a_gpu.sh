#!/usr/bin/env bash
# Everything that waits for a GPU, in under 25 minutes: tests on CUDA, parity of lower precisions, the benchmark at full
# size with each saving off in turn, by precision, compiled and by batch, memory of trainings, and for the rest of the
# time, if they are named, the proof of docs/proof.md and a training. Weights and AdamW in 8 bit are tried where their
# packages are (pip install '.[quantize,adamw8bit]'). Prints one table, and writes the section "On a GPU" of
# docs/benchmarks.md.
#   bash demo/on_a_gpu.sh [OUT]                    OUT: demo/on_a_gpu
#   DEVICE=cpu bash demo/on_a_gpu.sh --tiny [OUT]  tries the script itself, by the tiny model; docs stay as they are
# Each part has a time limit and a file of its own in OUT. Parts that failed do not stop the others; started again, the
# script does what is missing. Settings, with their defaults:
#   DEVICE=cuda MINUTES=25 CONFIG=configs/model/tisynth_v15.yaml SIZE=512 STEPS=50 REPEATS=5
#   PRECISIONS="bf16 16 32" (the first also compiled, and by presets) BATCHES="2 4 8 16" LORA=8
#   PATIENCE=1 (factor of the time limits) TRAIN= (folder of a run to go on with in the time that is left; empty: none)
#   PROOF= (data set in the layout of demo/prove.sh, which trains PROOF_MINUTES=240, paints and compares PROOF_SEEDS=5 on
#   it in the time that is left; its other settings are as below, or as given: CROP, ITERS, ARMS, START, ...; then
#   LOOP=2 rounds of improve.sh with its model, all parts together, see there; empty: neither)
set -euo pipefail
tiny=
if [ "${1:-}" = --tiny ]; then
  tiny=yes; shift
  : "${CONFIG:=configs/model/tisynth_tiny.yaml}" "${SIZE:=64}" "${STEPS:=4}" "${REPEATS:=2}" "${BATCHES:=1 4}" "${LORA:=2}"
  : "${MINUTES:=60}" "${PATIENCE:=4}"  # for a busy machine
fi
[ $# -le 1 ] || { sed -n 2,16p "$0" | cut -c3- >&2; exit 2; }
out=$(realpath -m "${1:-$(dirname "$0")/on_a_gpu}")
[ -z "${TRAIN:-}" ] || TRAIN=$(realpath "$TRAIN")
[ -z "${PROOF:-}" ] || PROOF=$(realpath "$PROOF")
[ -z "${CHOOSE:-}" ] || CHOOSE=$(realpath "$CHOOSE")
export CHOOSE=${CHOOSE:-}
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
: "${DEVICE:=cuda}" "${MINUTES:=25}" "${CONFIG:=configs/model/tisynth_v15.yaml}" "${SIZE:=512}" "${STEPS:=50}"
: "${REPEATS:=5}" "${PRECISIONS:=bf16 16 32}" "${BATCHES:=2 4 8 16}" "${LORA:=8}" "${TRAIN:=}" "${PATIENCE:=1}"
: "${PROOF:=}" "${PROOF_MINUTES:=240}" "${PROOF_SEEDS:=5}"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} NO_ALBUMENTATIONS_UPDATE=1
die() { echo "error: $*" >&2; exit 2; }
left() { echo $((MINUTES * 60 - SECONDS)); }

mkdir -p "$out"
exec 9>>"$out/.lock"  # held until the last of this script's commands has ended
flock -n 9 || die "$out: another of these scripts is writing there; wait for its end, or name another folder"
settings="DEVICE=$DEVICE CONFIG=$CONFIG SIZE=$SIZE STEPS=$STEPS REPEATS=$REPEATS LORA=$LORA"
[ "$(cat "$out/settings" 2>/dev/null || echo "$settings")" = "$settings" ] ||
  die "$out holds what was measured with $(cat "$out/settings"): remove it, or name another folder"
echo "$settings" > "$out/settings"

# part NAME SECONDS COMMAND...: no longer than that, and not beyond the whole's time.
part() {
  local name=$1 limit=$(($2 * PATIENCE)) code=0
  shift 2
  [ ! -e "$out/$name.done" ] || { echo "== $name: done before"; return; }
  [ "$limit" -le "$(left)" ] || limit=$(left)
  [ "$limit" -gt 5 ] || { echo "no time was left" > "$out/$name.failed"; echo "== $name: no time is left"; return; }
  echo "== $name, at most $limit s ($SECONDS s)"
  # ended by this script's end as well as by the time limit, whichever way: timeout ends with this, the work with timeout
  "$python" -m common.processes "$BASHPID" timeout -k 10 "$limit" \
    sh -c 'exec "$0" -m common.processes $PPID "$@"' "$python" "$@" > "$out/$name.log" 2>&1 || code=$?
  if [ "$code" = 0 ]; then
    rm -f "$out/$name.failed"; touch "$out/$name.done"
  else
    [ "$code" = 124 ] && echo "took longer than $limit s" > "$out/$name.failed" ||
      echo "exit code $code: $(tail -n 1 "$out/$name.log" | cut -c1-200)" > "$out/$name.failed"
    echo "   $(cat "$out/$name.failed")"
  fi
}
[ "$DEVICE" = cpu ] || "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2>/dev/null ||
  die "DEVICE=$DEVICE: torch finds no GPU here (an old driver?); DEVICE=cpu with --tiny tries the script"
bench=("$python" -m scripts.benchmark --config "$CONFIG" --size "$SIZE" --device "$DEVICE" --repeats "$REPEATS")

part tests 210 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/test_on_a_gpu.py
part parity 90 "${bench[@]}" --parity --out "$out/parity.json"
more=(--presets --compile)
limit=300  # three ways to compile
for precision in $PRECISIONS; do
  part "bench_$precision" "$limit" "${bench[@]}" --precision "$precision" --steps "$STEPS" "${more[@]}" --out "$out/bench_$precision.json"
  more=() limit=180
done
[ "$DEVICE" = cpu ] && measured=() || measured=(--measure)
part memory 240 "$python" -m scripts.count_memory --config "$CONFIG" --size "$SIZE" --batch-size 1 4 --lora "$LORA" "${measured[@]}"
for batch in $BATCHES; do  # in fewer steps: an image's other work then counts for more
  part "batch_$batch" 40 "${bench[@]}" --precision "${PRECISIONS%% *}" --steps "$((STEPS < 10 ? STEPS : 10))" \
    --batch-size "$batch" --no-peer --no-training --out "$out/batch_$batch.json"
done
if [ -n "$PROOF" ]; then
  rm -f "$out/proof.done"  # it goes on by itself, and refuses other data or settings
  [ "$DEVICE" = cpu ] && gpus=cpu || gpus=0
  # MINUTES, SIZE and STEPS of this script are others than those of that one
  part proof "$(left)" env MINUTES="$PROOF_MINUTES" SEEDS="$PROOF_SEEDS" GPUS="$gpus" SIZE=256 STEPS=50 PYTHON="$python" \
    CROP="${CROP:-128}" SEGMENTOR="${SEGMENTOR:-configs/mmseg/tiny_unet.py}" REPEAT="${REPEAT:-2}" ITERS="${ITERS:-8000}" \
    LOOP="${LOOP:-2}" \
    ARMS="${ARMS:-real fda color_transfer copy_paste self_training joint pretrain synthesized joint+copy_paste}" \
    bash demo/prove.sh "$PROOF" "$out/proof"
fi
if [ -n "$TRAIN" ] && [ "$(left)" -gt 300 ]; then
  rm -f "$out/train.done"  # there is always more
  # ended by SIGTERM, which saves, and leaves the run as it was: a max_time would be its own from now on
  # shellcheck disable=SC2016
  part train "$(left)" sh -c 'code=0; timeout --foreground "$0" "$@" || code=$?; [ "$code" = 124 ] || exit "$code"' \
    "$(($(left) - 180))" "$python" -m scripts.train --resume "$TRAIN"
fi

page=()
[ "$DEVICE" = cpu ] || [ -n "$tiny" ] || page=(--page docs/benchmarks.md)
"$python" -m demo.gpu_report "$out" "${page[@]}" | tee "$out/table.md"
! compgen -G "$out/*.failed" > /dev/null
