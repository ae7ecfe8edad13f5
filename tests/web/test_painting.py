"""What the page paints is what the command paints, and what it says of the filter is what the filter does."""

import shlex
import signal
import socket
import subprocess
import threading
import time
import zipfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from cldm.synthesis.guiding import few_steps
from cldm.synthesis.saving_options import PRESETS, WHOLE
from common.errors import InputError
from common.images import read_image, read_mask
from tests.conftest import ROOT, without_a_class_table
from web import studio as studio_module
from web.command import bundle, command_line, command_words
from web.options import WebOptions
from web.painting import Growing, Painted, Stopped, Wish, from_thread, paint, write_wish
from web.serve import Server, serve, without_telemetry
from web.verdict import mask_of_photo, overlaid, verdict_on


def wish(studio, scenes, **more):
    mask = studio.table.labels.read(scenes / "label_test" / "test_0000.png")
    return Wish(mask, studio.references()[0], "a satellite image of field", seed=7, **more)


@pytest.fixture(scope="module")
def painted(studio, scenes, tmp_path_factory):
    """Two images of a preset, that reuse features, with an option that is set back to the usual default."""
    given = {"steps": 4, "scale": 2.0, "mask_strength": 0.5, "sampler": "ddim", "reuse_encoder": "all"}
    return list(paint(studio, wish(studio, scenes, count=2, preset="fast", given=given), tmp_path_factory.mktemp("p")))


def test_the_image_grows_and_is_the_commands(painted, cli, monkeypatch):
    *moments, made = painted
    assert isinstance(made, Painted) and all(isinstance(one, Growing) for one in moments)
    assert [one.step for one in moments] == [1, 2, 3] and moments[0].images.shape == (2, 32, 32, 3)
    assert [path.name for path in made.images] == ["mask_seed_7.png", "mask_seed_8.png"] and made.seeds == [7, 8]

    words = command_words(made.options)
    assert words[:2] == ["bash", str(ROOT / "inference.sh")] and "--seed=7" in words
    assert not any(word.startswith("--preset") for word in words)  # ddim in the place of the preset's solver
    monkeypatch.chdir(made.folder)
    cli("inference", *words[2:])
    for path in made.images:
        assert np.array_equal(read_image(path), read_image(made.folder / "again" / path.name))


def test_a_folder_to_take_away(painted, tmp_path):
    made = painted[-1]
    with zipfile.ZipFile(bundle(made)) as file:
        file.extractall(tmp_path)
    here = tmp_path / "tisynth"
    names = {str(path.relative_to(here)) for path in here.rglob("*") if "again" not in path.parts}
    assert names >= {"again.sh", "items.json", "mask.png", "reference.png", "images/mask_seed_7.png"}
    script = (here / "again.sh").read_text()
    assert command_line(made.options) in script
    assert subprocess.run(["bash", "-n", here / "again.sh"]).returncode == 0
    assert shlex.split(command_line(made.options).replace("\\\n", " ")) == command_words(made.options)


def test_a_preset_is_named_where_nothing_of_it_is_undone(painted):
    options = replace(painted[-1].options, sampler="dpmsolver++", guidance_interval=(0.1, 0.8), seed=42)
    words = command_words(options)
    assert "--preset=fast" in words and "--seed=42" in words


def test_the_command_finds_the_class_table(studio, painted, scenes, tmp_path, monkeypatch):
    (tmp_path / "MBRSC").mkdir()  # a folder beside the page is not the built-in table
    (tmp_path / "mine.json").write_bytes((scenes / "classes.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    tables = {"MBRSC": "MBRSC", "loveda:ids": "loveda:ids"}
    tables |= {name: str(tmp_path / name) for name in ("mine.json", "mine.json:from1")}
    for given, typed in tables.items():
        assert f"--classes={typed}" in command_words(replace(painted[-1].options, classes=given))
    (tmp_path / "wish").mkdir()
    named_by_config = replace(studio, options=replace(studio.options, classes=None), class_table="mine.json")
    options = write_wish(named_by_config, wish(studio, scenes), tmp_path / "wish")
    assert f"--classes={tmp_path / 'mine.json'}" in command_words(options)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_distilled_model_paints_as_it_was_distilled(distilled, scenes, tmp_path, preset):
    options = write_wish(distilled, wish(distilled, scenes, preset=preset), tmp_path)
    assert (options.sampler, options.steps, options.scale) == ("lcm", 4, 1.0)
    assert options.guidance_interval == WHOLE and options.reuse_encoder == "none"
    assert few_steps(distilled.model, options) == []
    assert not any(word.startswith("--preset") for word in command_words(options))
    options = write_wish(distilled, wish(distilled, scenes, given={"steps": 8}), tmp_path)
    assert options.steps == 8 and options.sampler == "lcm"


def test_the_box_begins_as_the_demonstration_paints():
    first, script = WebOptions().filled(), (ROOT / "demo" / "run.sh").read_text()
    assert f"--scale {first.scale:g} --mask-scale {first.mask_scale:g})" in script
    whole = PRESETS[first.preset]
    assert f"--sampler {whole['sampler']} --ddim-steps {whole['steps']} " in script and len(whole) == 2
    assert WebOptions(preset="fast", scale=3.0).filled().preset == "fast"


def test_weights_are_in_bf16_where_that_is_quicker(options, monkeypatch):
    for multiplies, device, precision in ((True, "cpu", "bf16"), (False, "cpu", "32"), (True, "cuda:0", "32")):
        monkeypatch.setattr(studio_module, "cpu_multiplies_bf16", lambda multiplies=multiplies: multiplies)
        assert studio_module.precision_of(options, device) == precision
    assert studio_module.precision_of(replace(options, precision="16"), "cpu") == "16"


def test_what_the_filter_would_drop_is_what_it_drops(painted, studio, scenes, segmentor, cli, tmp_path):
    made = painted[-1]
    verdict = verdict_on(studio, made.images[0], made.folder / "mask.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "mask.png").write_bytes((made.folder / "mask.png").read_bytes())
    words = ["--real-img-path", scenes / "img_train", "--real-label-path", scenes / "label_train", "--device", "cpu"]
    words += ["--syn-img-path", made.folder / "images", "--syn-mask-path", tmp_path / "masks", "--num-workers", 0]
    cli("filter", *segmentor, *words, "--filtered-mask-path", tmp_path / "filtered", "--batch-size", 1)
    kept = read_mask(tmp_path / "filtered" / "mask_seed_7.png")
    dropped = (kept == 255) & (read_mask(made.folder / "mask.png") != 255)
    assert 0 < dropped.sum() < dropped.size and np.array_equal(verdict.dropped, dropped)
    assert verdict.share == pytest.approx(dropped.mean()) and verdict.reasons
    assert all(" of " in reason and "it sees" in reason for reason in verdict.reasons[:1])
    red = overlaid(read_image(made.images[0]), dropped)
    assert np.array_equal(red[~dropped], read_image(made.images[0])[~dropped]) and (red[dropped][:, 0] > 100).all()


def test_a_photo_becomes_a_mask(studio, scenes):
    photo = scenes / "img_test" / "test_0000.png"
    photo = photo if photo.exists() else next((scenes / "img_test").iterdir())
    ids = mask_of_photo(studio, photo)
    assert ids.shape == (32, 32) and len(np.unique(ids)) > 1 and ids.max() < 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask": np.full((32, 32), 255, np.uint8)}, "the mask is empty"),
        ({"reference": None}, "no reference"),
        ({"count": 5}, "1 to 4"),
        ({"seed": -1}, "seed"),
        ({"given": {"scale": -3.0}}, "scale"),
        ({"given": {"steps": 0}}, "steps"),
    ],
    ids=str,
)
def test_a_wish_that_cannot_be_is_refused(studio, scenes, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        list(paint(studio, replace(wish(studio, scenes), **change), tmp_path))
    assert not (tmp_path / "images").exists()


def test_a_reference_that_is_no_image_is_refused(studio, scenes, tmp_path):
    (tmp_path / "r.png").write_text("no picture")
    with pytest.raises(InputError, match=r"r\.png"):
        list(paint(studio, replace(wish(studio, scenes), reference=tmp_path / "r.png"), tmp_path))


def test_work_that_nobody_waits_for_ends_at_its_next_step():
    told = []

    def work(tell):
        try:
            for step in count():
                tell(step)
        except Stopped:
            told.append("stopped")
            raise

    moments = from_thread(work)
    assert next(moments) == 0
    moments.close()
    assert told == ["stopped"]


def test_each_step_is_told_so_that_each_can_be_the_last(studio, scenes, tmp_path):
    *moments, _ = paint(studio, wish(studio, scenes, given={"steps": 12, "scale": 1.0}), tmp_path)
    assert [one.step for one in moments] == list(range(1, 12))
    pictures = [one.images for one in moments]
    assert pictures[0] is None and pictures[1].shape == (1, 32, 32, 3)
    assert len({id(picture) for picture in pictures if picture is not None}) == 5  # the sixth is the image


def test_no_two_works_run_at_once():
    running, most = [], []

    def work(tell):
        running.append(1)
        time.sleep(0.02)
        most.append(len(running))
        running.pop()

    asking = [threading.Thread(target=list, args=(from_thread(work),)) for _ in range(3)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert most == [1, 1, 1]


def test_sigterm_takes_the_pages_files_with_it(options, tmp_path, monkeypatch):
    def made(options, work: Path):
        (work / "upload.png").touch()
        return Server("", lambda: signal.raise_signal(signal.SIGTERM), list)  # as uvicorn does once it has ended

    monkeypatch.setattr("web.serve.make_server", made)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(SystemExit) as end:
            serve(options)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 143 and not list(tmp_path.iterdir())


def test_the_command_refuses_in_one_line(cli, scenes, options, tmp_path, monkeypatch):
    monkeypatch.setattr(WebOptions.filled, "__defaults__", (tmp_path,))
    said = cli.refused("web")
    assert "the model in the box is not here" in said and "--config" in said and "model.yaml" in said
    assert "--config and --model: give both" in cli.refused("web", "--config", options.config)
    both = ["--config", options.config, "--model", options.model]
    assert "no such file or folder" in cli.refused("web", *both, "--references", tmp_path / "nothing")

    with monkeypatch.context() as without, pytest.raises(InputError, match="pip install"):
        without.setattr("importlib.util.find_spec", lambda name: None)
        without_telemetry(tmp_path)


def test_what_does_not_fit_together_is_refused_in_one_line(cli, options):
    pytest.importorskip("gradio")
    both = ["--config", options.config, "--model", options.model]
    assert "names no class table" in cli.refused("web", *both, "--device", "cpu")
    more = [*both, "--device", "cpu", "--classes", options.classes]
    assert "must be a multiple of" in cli.refused("web", *more, "--size", 30)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}: cannot listen there" in cli.refused("web", *more, "--size", 32, "--port", port)


def test_a_class_table_is_enough_where_the_file_names_none(options, scenes, tmp_path):
    config, weights = without_a_class_table(tmp_path, scenes / "classes.json")
    alone = {"segmentor": None, "real_img_path": None, "real_label_path": None}
    opened = studio_module.open_studio(replace(options, config=config, model=weights, **alone))
    assert opened.model.control_model.hint_channels == len(opened.table) == 5


def test_what_an_overlay_keeps():
    image = np.full((4, 4, 3), 100, np.uint8)
    assert np.array_equal(overlaid(image, np.zeros((4, 4), bool)), image)
    dropped = np.zeros((4, 4), bool)
    dropped[2:] = True
    red = overlaid(image, dropped)
    assert red[2, 0].tolist() == [230, 30, 50] and red[3, 0].tolist() == [178, 58, 70] and (red[:2] == 100).all()
