#!/usr/bin/env bash
# The demonstration: makes a data set, trains the tiny model on the CPU, synthesises images in the style of the other
# domain, and writes one contact sheet. Run again, it goes on where it stopped, and repeats nothing.
#   bash demo/run.sh            STEPS=3000 bash demo/run.sh for better images
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
: "${STEPS:=1000}" "${COUNT:=64}" "${OUT:=demo/output}"
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}  # threads that wait leave the cores to others
data=$OUT/data run=$OUT/logs/demo
say() { echo "== $* ($SECONDS s)"; }

say "data set: land-cover scenes as two sensors see them"
[ -e "$data/classes.json" ] || "$PYTHON" demo/make_data.py --out "$data"

say "training configs/model/tisynth_tiny.yaml, $STEPS steps"
if [ ! -e "$run/done" ]; then
  options=(lightning.trainer.max_steps="$STEPS" model.params.decay_steps="$STEPS" model.params.classes="$data/classes.json")
  if [ -e "$run/checkpoints/last.ckpt" ]; then
    bash train.sh --resume "$run" --gpus cpu "${options[@]}"
  else
    rm -rf "$run"
    bash train.sh --base configs/train/tiny.yaml --config_model configs/model/tisynth_tiny.yaml -n demo -l "$OUT/logs" \
      --data_root "$data" --train_txt_file "$data/train_set_items.json" --val_txt_file "$data/test_set_items.json" \
      --gpus cpu "${options[@]}"
  fi
  touch "$run/done"
fi

say "synthesis: masks of one domain, references of the other"
head -n "$COUNT" "$data/inference_set_items.json" > "$data/demo_items.json"
bash inference.sh --config "$run/config.yaml" --ckpt "$run/checkpoints/last.ckpt" --use_ema --data_root "$data" \
  --txt_file "$data/demo_items.json" --outdir "$OUT/images" --seed 0 --gpus cpu \
  --sampler dpmsolver++ --ddim_steps 20 --scale 2 --batch_size 16

say "contact sheet"
"$PYTHON" -m scripts.contact_sheet --samples "$OUT/images" --data_root "$data" --items "$data/demo_items.json" \
  --classes "$data/classes.json" --out "$OUT/contact_sheet.png"
say "done: open $OUT/contact_sheet.png"
