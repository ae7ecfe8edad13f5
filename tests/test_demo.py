"""The demonstrations' scripts: one at a time, no command outlives them, and "done" says what was done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from demo import ablations_picture, ablations_table, choose, gpu_report, half_scale, proof_table, sizes, use_figure
from tests.conftest import ROOT
from tests.test_processes import alive, gone

STUB = """#!/bin/sh
[ "$2" = common.processes ] && exec {python} "$@"
cd {place} || exit 1
echo $$ > pid && mv pid started
exec sleep 60
"""


@pytest.fixture
def place(tmp_path):
    """Data, and a python that starts nothing but itself."""
    for folder in ("img_train", "label_train", "img_test", "label_test", "ref_img"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "a.png").write_bytes(b"1")
    for name in ("classes", "train_set_items", "inference_set_items"):
        (tmp_path / "data" / f"{name}.json").write_text("{}")
    (tmp_path / "python").write_text(STUB.format(python=sys.executable, place=tmp_path))
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def start(place, **settings):
    return subprocess.Popen(
        ["bash", ROOT / "demo/prove.sh", place / "data", place / "out"],
        text=True,
        env={**os.environ, "PYTHON": str(place / "python"), **settings},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for(path):
    end = time.monotonic() + 20
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return int(path.read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_script(place, number):
    with start(place) as first:
        training = wait_for(place / "started")
        with start(place) as second:
            assert f"error: {place}/out: process {first.pid} on" in second.stderr.read()
        assert second.returncode == 2 and alive(training)
        first.send_signal(number)
        assert gone([training])


@pytest.mark.parametrize(
    ("lacking", "settings", "says"),
    [
        ("ref_img", {}, "data: no folder ref_img"),
        (
            "inference_set_items.json",
            {},
            "data: no inference_set_items.json; python -m scripts.import_data --references",
        ),
        ("", {"SPLITS": "test target"}, "data: no folder img_target"),
    ],
)
def test_data_that_lack_something_are_refused_before_hours_of_work(place, lacking, settings, says):
    if lacking:
        (place / "data" / lacking).rename(place / "elsewhere")
    with start(place, **settings) as process:
        assert says in process.stderr.read()
    assert process.returncode == 2 and not (place / "out").exists()


def test_ablations_become_a_table_and_a_picture(tmp_path, capsys, monkeypatch):
    for value, arm in enumerate(("x0", "min_snr"), 1):
        (tmp_path / arm / "evaluation").mkdir(parents=True)
        (tmp_path / arm / "evaluation/evaluation.json").write_text(json.dumps({"synthesized": {"mIoU": value / 8}}))
        (tmp_path / "logs" / arm / "checkpoints").mkdir(parents=True)
        torch.save({"global_step": 1000 * value, "state_dict": {}}, tmp_path / f"logs/{arm}/checkpoints/last.ckpt")
        with SummaryWriter(tmp_path / f"logs/{arm}/tensorboard") as log:
            for step in (1, 2):
                log.add_scalar("val/loss", step * value, step)
        width, height = 4 * (ablations_picture.TILE + ablations_picture.GAP), 300
        Image.new("RGB", (width, height), (0, 0, 100 * value)).save(tmp_path / f"{arm}.png")
    monkeypatch.setattr(sys, "argv", ["table", str(tmp_path), "x0", "min_snr"])
    ablations_table.main()
    assert "| `min_snr` | 2,000 | 4.000 | 0.250 |" in capsys.readouterr().out
    picture = tmp_path / "arms.png"
    monkeypatch.setattr(
        sys, "argv", ["picture", str(tmp_path), "x0", "min_snr", "--picture", str(picture), "--rows", "2"]
    )
    ablations_picture.main()
    made = Image.open(picture)
    assert [made.getpixel((132 * column + 60, 60)) for column in range(4)] == [(0, 0, 100)] * 3 + [(0, 0, 200)]


def test_a_data_set_at_half_scale(tmp_path):
    """Means over 2 x 2 pixels, masks that make no class up, one tile held out; a second start changes nothing."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    for tile, image in zip(("t1_a", "t2_a"), images, strict=True):
        for folder, content in (("img_train", image), ("label_train", image[..., 0] % 5), ("ref_img", image)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(tmp_path / "data" / folder / f"{tile}.png")
    (tmp_path / "data/classes.json").write_text(json.dumps({"classes": [*"abcde"]}))
    lines = [json.dumps({"source": f"label_train/{tile}.png"}) for tile in ("t1_a", "t2_a")]
    (tmp_path / "data/train_set_items.json").write_text("\n".join(lines) + "\n")
    words = [str(tmp_path / "data"), str(tmp_path / "half"), "--held-out", "t2", "--few", "1"]
    with pytest.raises(SystemExit):  # before anything is halved
        half_scale.main([*words[:2], "--held-out", "t9"])
    assert not (tmp_path / "half").exists()
    half_scale.main(words)
    found = np.array(Image.open(tmp_path / "half/choose/img_val/t2_a.png"), float)
    assert np.abs(found - images[1].reshape(4, 2, 3, 2, 3).mean((1, 3))).max() <= 0.5
    mask = np.array(Image.open(tmp_path / "half/data/label_train/t1_a.png"))
    assert (mask == images[0, ::2, ::2, 0] % 5).all()
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("half/*/*/*")}
    few = [path.name for path in (tmp_path / "half/few/img_train").iterdir()]
    assert (tmp_path / "half/few/train_set_items.json").read_text() in [line + "\n" for line in lines]
    assert few[0].removesuffix(".png") in (tmp_path / "half/few/train_set_items.json").read_text() and len(few) == 1
    assert len(files) == 6 + 4 + 4 and len(list((tmp_path / "half/choose/label_train").iterdir())) == 1
    half_scale.main(words)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("half/*/*/*")} == files
    half_scale.main([*words[:2], "--held-out", "t1"])  # another tile takes its place
    held = {split: [path.stem for path in tmp_path.glob(f"half/choose/*_{split}/*")] for split in ("train", "val")}
    assert held == {"train": ["t2_a"] * 2, "val": ["t1_a"] * 2}


def test_masks_of_another_size_than_is_painted_are_told(tmp_path, capsys):
    for name, size in (("a", (24, 16)), ("b", (24, 16)), ("c", (8, 8))):
        Image.new("L", size).save(tmp_path / f"{name}.png")
    sizes.main([str(tmp_path), "8"])
    assert "most masks are 24 x 16 px (width x height), and images are painted at 8 x 8" in capsys.readouterr().err
    for name in "ab":
        (tmp_path / f"{name}.png").unlink()
    sizes.main([str(tmp_path), "8"])
    assert not capsys.readouterr().err


def test_use_is_drawn_against_cost(tmp_path):
    for name, score in (("a", 0.4), ("b", 0.5)):
        (tmp_path / name).mkdir()
        scores = {"synthesized": {"mIoU": score}, "real": {"mIoU": 0.6}}
        (tmp_path / name / "evaluation.json").write_text(json.dumps(scores))
    use_figure.main(["--out", str(tmp_path / "use.svg"), f"a=1:{tmp_path / 'a'}", f"half, b=0.5:{tmp_path / 'b'}"])
    drawn = (tmp_path / "use.svg").read_text()
    assert drawn.startswith("<svg") and "<!-- half, b -->" in drawn and "<!-- in real images -->" in drawn
    score = {"mIoU": {"difference": {"mean": 0.01, "low": -0.02, "high": 0.04}}}
    results = {split: {"arms": {"synthesized:a": {"scores": score}}} for split in ("test", "target")}
    (tmp_path / "comparison.json").write_text(json.dumps({"results": results}))
    words = ["--out", str(tmp_path / "use.svg"), "--comparison", str(tmp_path / "comparison.json")]
    use_figure.main([*words, f"a=1:{tmp_path / 'a'}", f"half, b=0.5:{tmp_path / 'b'}"])
    drawn = (tmp_path / "use.svg").read_text()
    assert drawn.count("<!-- a -->") == 3 and "<!-- target: mIoU of segmentors, in points -->" in drawn


def test_the_best_rate_is_chosen(tmp_path, capsys):
    def measured(score):  # one pixel of a class that no mask shows, found by the best, is a 0 in its mIoU alone
        absent = {"b": {"IoU": 0.0, "Acc": None}} if score == 0.4 else {}
        return {"mIoU": score / (1 + len(absent)), "classes": {"a": {"IoU": score, "Acc": score}, **absent}}

    for rate, score in (("1e-3", 0.3), ("2e-3", 0.4), ("4e-3", 0.9)):  # the last of an earlier call's rates
        run = tmp_path / f"rate_{rate}"
        (run / "log/vis_data").mkdir(parents=True)
        (run / "metrics.json").write_text(json.dumps(measured(score)))
        lines = [{"loss": 1.0, "step": 1}, {"mIoU": score / 2, "step": 5}, {"mIoU": score, "step": 10}]
        (run / "log/vis_data/scalars.json").write_text("\n".join(map(json.dumps, lines)))
    choose.main(tmp_path, ["1e-3", "2e-3"])
    assert capsys.readouterr().out == "2e-3\n" and "<svg" in (tmp_path / "curves.svg").read_text()
    assert json.loads((tmp_path / "choose.json").read_text())["curves"]["1e-3"] == [[5, 0.15], [10, 0.3]]


@pytest.mark.parametrize(
    ("settings", "arms"),
    [({}, "real joint"), ({"TREATMENT": "weight"}, "real joint+weights"), ({"TREATMENT": "weight", "ARMS": "a"}, "a")],
)
def test_weight_maps_are_used_where_they_are_made(place, settings, arms):
    ask = place / "ask.sh"
    ask.write_text((ROOT / "demo/prove.sh").read_text().partition("read -ra start")[0] + 'echo "$ARMS"')
    words = ["bash", ask, place / "data", place / "out"]
    said = subprocess.run(words, env={**os.environ, **settings}, cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout == f"{arms}\n"


def test_done_is_of_certain_settings_and_data(place):
    run = place / "out/logs/synthesis"
    ask = place / "ask.sh"  # what it would write
    text = (ROOT / "demo/prove.sh").read_text().partition('if [ -z "$PAINTER" ] && ! is_done')[0]
    ask.write_text(text.replace('cd "$(dirname "$0")/.."', f"cd {ROOT}") + 'echo "$settings"')
    said = subprocess.run(["bash", ask, place / "data", place / "other"], capture_output=True, text=True, check=True)
    run.mkdir(parents=True)
    (run / "done").write_text(said.stdout.splitlines()[-1] + "\n")
    with start(place) as script:  # goes on behind the training
        wait_for(place / "started")
        script.kill()
    (place / "started").unlink()
    for change, settings in ((b"1", {"SIZE": "64"}), (b"2", {})):
        (place / "data/label_train/a.png").write_bytes(change)
        with start(place, **settings) as script:
            assert "done: of another training" in script.stderr.read()
        assert script.returncode == 2 and not (place / "started").exists()
    shutil.rmtree(run)  # begun, and stopped after its first checkpoint
    with start(place) as script:
        wait_for(place / "started")
        script.kill()
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/last.ckpt").write_text("")
    with start(place, RATE="1e-4") as script:
        assert "synthesis.settings: of another training" in script.stderr.read()


MEASURED = {
    "precision": "bf16",
    "device": "a GPU",
    "torch": "2",
    "create_model_seconds": 1.0,
    "seconds_per_step": 0.5,
    "images_per_second": 0.04,
    "steps_per_image": 50,
    "ablations": {"attention not fused": 1.5},
}
PART = """#!/bin/sh
case "$*" in
  *common.processes*|*gpu_report*) exec {python} "$@";;
  *--parity*) echo broken; exit 3;;
  *batch-size\\ 1\\ --no-peer*) exec sleep 60;;
esac
echo "$*" >> {place}/works
while [ $# -gt 0 ]; do [ "$1" = --out ] && cp {place}/measured.json "$2"; shift; done
exit 0
"""


def test_each_part_on_a_gpu_is_done_once_and_failures_stop_no_other(tmp_path):
    (tmp_path / "measured.json").write_text(json.dumps(MEASURED))
    (tmp_path / "python").write_text(PART.format(python=sys.executable, place=tmp_path))
    (tmp_path / "python").chmod(0o755)
    script = tmp_path / "on_a_gpu.sh"  # whose parts may take a second, and which works where the repository is
    text = (ROOT / "demo/on_a_gpu.sh").read_text()
    script.write_text(text.replace('_$batch" 40 ', '_$batch" 6 ').replace('cd "$(dirname "$0")/.."', f'cd "{ROOT}"'))
    settings = {"PYTHON": tmp_path / "python", "DEVICE": "cpu", "PRECISIONS": "bf16", "BATCHES": "1", "PATIENCE": "1"}
    settings["PROOF"] = tmp_path  # no data set: demo/prove.sh says so
    env = {**os.environ, **{name: str(value) for name, value in settings.items()}}

    def start():
        return subprocess.run(["bash", script, "--tiny", tmp_path / "out"], env=env, text=True, capture_output=True)

    first = start()
    assert first.returncode == 1 and not first.stderr
    slow = "* batch_1 failed: took longer than 6 s"
    unproven = f"* proof failed: exit code 2: error: {tmp_path}: no folder img_train"
    for line in ("* parity failed: exit code 3: broken", unproven, slow, "| attention not fused | 1.50 |"):
        assert line in first.stdout, first.stdout
    works = (tmp_path / "works").read_text()
    assert works.count("--presets --compile") == 1 and works.count("count_memory") == 1
    (tmp_path / "out" / "batch_1.done").touch()
    again = start()
    assert "== bench_bf16: done before" in again.stdout and (tmp_path / "works").read_text() == works


def test_a_table_of_arms_in_points():
    def arm(seeds, real, mean, apart, low, high):
        apart = {"mean": apart, "low": low, "high": high}
        score = {"seeds": seeds, "baseline": {"mean": real}, "joint": {"mean": mean}, "difference": apart}
        return {"scores": {"mIoU": score}}

    both = {"joint": arm(3, 0.5, 0.52, 0.02, -0.01, 0.05), "fda": arm(3, 0.5, 0.4, -0.1, -0.12, -0.08)}
    later = {"results": {"test": {"arms": {"joint:other": arm(1, 0.5, 0.6, 0.1, None, None)}}}}
    lines = proof_table.table([{"results": {"test": {"arms": both}}}, later])
    assert lines[0] == "| arm | seeds | test | to `real` |" and lines[2:] == [
        "| `real` | 1 | 50.0 |  |",
        "| `joint` | 3 | 52.0 | +2.0 ± 3.0 |",
        "| `fda` | 3 | 40.0 | -10.0 ± 2.0 |",
        "| `joint:other` | 1 | 60.0 | +10.0 ± ? |",
    ]


def test_a_benchmarks_own_numbers_stand_beside_those_of_a_batch(tmp_path):
    whole = {**MEASURED, "peaks_gib": {"synthesis": 1.0, "training": 3.0}}
    (tmp_path / "bench_32.json").write_text(json.dumps({**whole, "precision": "32"}))
    (tmp_path / "batch_1.json").write_text(json.dumps({**MEASURED, "precision": "32", "peaks_gib": {"synthesis": 2.0}}))
    (tmp_path / "parity.json").write_text(json.dumps({"precisions": {"32, TF32": {"prediction": 0.01}}}))
    for name in ("bench_32", "batch_1", "parity"):
        (tmp_path / f"{name}.done").touch()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in gpu_report.table(tmp_path)]
    assert any("3.0" in row[1] for row in rows) and rows[-1][1:] == ["1.00%"]


def test_the_section_on_a_gpu_takes_the_place_of_the_one_before():
    section = ["## On a GPU", "", "x"]
    page = "# B\n\n## On a GPU\n\nNot measured.\n\n## After\n\nmore\n"
    assert gpu_report.replace_section(page, section) == "# B\n\n## On a GPU\n\nx\n\n## After\n\nmore\n"
    assert gpu_report.replace_section("# B\n", section) == "# B\n\n## On a GPU\n\nx\n"
    assert gpu_report.replace_section("# B\n\n## On a GPU\n\nold\n", section) == "# B\n\n## On a GPU\n\nx\n"
