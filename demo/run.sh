#!/usr/bin/env bash
# The demonstration, the whole chain on the CPU: paints masks in the style of images from other places, filters and
# re-samples what it painted, and compares segmentors trained with and without it. Writes a contact sheet and a page.
# The model and the crops of aerial images lie beside this file (demo/mbrsc, docs/small_model.md). With STEPS, a tiny
# model is trained from nothing, on a made data set of land-cover scenes. Run again, it goes on where it stopped.
# A signal that ends it ends its commands, too.
#   bash demo/run.sh            STEPS=900 OUT=from_nothing bash demo/run.sh to train from nothing
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
: "${STEPS:=0}" "${OUT:=demo/output}"
: "${COUNT:=$((STEPS ? 128 : 64))}" "${ITERS:=$((STEPS ? 250 : 120))}"
: "${PROCESSES:=$(($(nproc) > 1 ? 2 : 1))}"  # at once: small layers gain little from more threads
child() { "$PYTHON" -m common.processes "$BASHPID" "$@"; }  # ends with this script, by SIGKILL too
share() { OMP_NUM_THREADS=$(($(nproc) / PROCESSES)) child "$@"; }
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}  # threads that wait leave the cores to others
data=$OUT/data run=$OUT/logs/demo
settings="STEPS=$STEPS COUNT=$COUNT ITERS=$ITERS"
mkdir -p "$OUT"
exec 9>>"$OUT/.lock"  # held until the last of this script's commands has ended
flock -n 9 || die "$OUT: $(cat "$OUT/.lock") is writing there; wait for its end, or give another folder by OUT=..."
echo "process $$ on $(uname -n)" > "$OUT/.lock"
[ "$(cat "$OUT/settings" 2>/dev/null || echo "$settings")" = "$settings" ] ||
  die "$OUT holds a demonstration of $(cat "$OUT/settings"): remove it, or give another folder by OUT=..."
echo "$settings" > "$OUT/settings"
say() { echo "== $* ($SECONDS s)"; }

if [ "$STEPS" = 0 ]; then
  box=demo/mbrsc side=128
  # the model follows masks better when it is told to: beyond what it would paint without mask and text
  painter=(--config "$box/model.yaml" --ckpt "$box/model.safetensors" --scale 2 --mask-scale 2)
  judge=$box/segmentor.py judge_weights=$box/segmentor.pth
  say "data set: crops of MBRSC's aerial images in tiles of $side px"
  if [ ! -e "$data/inference_set_items.json" ]; then
    rm -rf "$data"
    child "$PYTHON" demo/cut_crops.py --data-root "$box" --out "$data" --side $side
  fi
else
  side=64 judge=$OUT/segmentor/tiny_unet.py
  painter=(--config "$run/config.yaml" --ckpt "$run/checkpoints/last.ckpt" --use-ema --scale 1)
  say "data set: land-cover scenes as two sensors see them"
  [ -e "$data/classes.json" ] || child "$PYTHON" demo/make_data.py --out "$data"

  say "training configs/model/tisynth_tiny.yaml, $STEPS steps"
  if [ ! -e "$run/done" ]; then
    options=(lightning.trainer.max_steps="$STEPS" model.params.decay_steps="$STEPS" model.params.classes="$data/classes.json"
             data.params.batch_size=$((16 / PROCESSES)) data.params.num_workers=0 --gpus "cpu:$PROCESSES")
    if [ -e "$run/checkpoints/last.ckpt" ]; then
      share bash train.sh --resume "$run" "${options[@]}"
    else
      rm -rf "$run"
      share bash train.sh --base configs/train/tiny.yaml --config-model configs/model/tisynth_tiny.yaml -n demo \
        -l "$OUT/logs" --data-root "$data" --train-txt-file "$data/train_set_items.json" --val-txt-file "$data/test_set_items.json" \
        "${options[@]}"
    fi
    touch "$run/done"
  fi
fi

say "synthesis: masks of one domain, references of the other"
head -n "$COUNT" "$data/inference_set_items.json" > "$data/demo_items.json"
share bash inference.sh "${painter[@]}" \
  --data-root "$data" --txt-file "$data/demo_items.json" --outdir "$OUT/images" --seed 0 --gpus "cpu:$PROCESSES" \
  --sampler dpmsolver++ --ddim-steps 20 --batch-size 16

say "contact sheet"
child "$PYTHON" -m scripts.contact_sheet --samples "$OUT/images" --data-root "$data" --items "$data/demo_items.json" \
  --classes "$data/classes.json" --out "$OUT/contact_sheet.png"

# Real images alone, or joined by synthesized ones: filter.sh, resample.sh, and segmentors over two seeds. So short a
# training learns buildings and roads, a tenth of the pixels, only if they weigh more.
tiles=(--data-root "$data" --classes "$data/classes.json" --crop-size $side --pretrained none --max-iters "$ITERS"
       --cfg-options train_dataloader.batch_size=8 train_dataloader.num_workers=1 test_dataloader.num_workers=1
       optim_wrapper.optimizer.lr=4e-3)
if [ "$STEPS" != 0 ]; then
  tiles+=("model.decode_head.loss_decode.class_weight=[1.0,1.0,1.0,4.0,4.0]")
  say "segmentor on real images, $ITERS steps"
  if [ ! -e "$OUT/segmentor/done" ]; then
    child "$PYTHON" -m scripts.segmentor train configs/mmseg/tiny_unet.py --work-dir "$OUT/segmentor" --resume "${tiles[@]}"
    touch "$OUT/segmentor/done"
  fi
  judge_weights=$(cat "$OUT/segmentor/last_checkpoint")
fi
child "$PYTHON" -m scripts.segmentor test "$judge" --load-from "$judge_weights" --work-dir "$OUT/segmentor" \
  --split train --data-root "$data" --classes "$data/classes.json"

say "filter, re-sample, evaluate"
pairs=(--syn-img-path "$OUT/images" --syn-mask-path "$data/label_train" --skip-invalid)  # not every mask is painted
child bash filter.sh "$judge" "$judge_weights" --real-img-path "$data/img_train" \
  --real-label-path "$data/label_train" "${pairs[@]}" --filtered-mask-path "$OUT/filtered"
child bash resample.sh --filtered-mask-path "$OUT/filtered" --syn-img-path "$OUT/images" --out-dir "$OUT/resampled" \
  --classes "$data/classes.json" --metrics "$OUT/segmentor/metrics.json" --worst 1
child "$PYTHON" -m scripts.evaluate_samples "$judge" "$judge_weights" --real-img-path "$data/img_test" \
  --real-label-path "$data/label_test" "${pairs[@]}" --train-img-path "$data/img_train" "$data/ref_img" \
  --out-dir "$OUT/evaluation"

say "comparison over two seeds"
share "$PYTHON" -m scripts.compare configs/mmseg/tiny_unet.py "${tiles[@]}" --synthesized "$OUT/resampled" \
  --repeat 1 --seeds 2 --jobs "$PROCESSES" --splits test target --out-dir "$OUT/comparison" \
  --syn-img-path "$OUT/images" --mask-path "$data/label_train" --filtered-mask-path "$OUT/filtered" \
  --evaluation "$OUT/evaluation" --title "Example: real images alone, or joined by synthesized ones?"
say "done: open $OUT/contact_sheet.png and $OUT/comparison/comparison.html"
