"""Options that save operations, by the command: what they set is told, recorded and held to; and what cannot be."""

import json
import shutil

from cldm.build import create_model
from cldm.synthesis.guiding import guidance_of, sparing
from cldm.synthesis.options import SamplingOptions
from cldm.synthesis.saving_options import PRESETS
from tests.conftest import SMALL
from tests.synthesis.conftest import close, images, records

TWO = ("--only", "train_0000_seed_5", "train_0001_seed_5")
FIELDS = (
    "preset",
    "guidance_interval",
    "mask_strength",
    "reference_strength",
    "mask_span",
    "reference_span",
    "reuse_encoder",
    "key_steps",
)


def test_a_preset_is_told_and_recorded_and_what_is_given_beside_it_wins(cli, command, tmp_path):
    given = (
        "--preset",
        "fast",
        "--reuse-encoder",
        "all",
        "--key-steps",
        "every-3",
        "--guidance-interval",
        "0.2",
        "0.9",
        "--mask-strength",
        "0.5",
        "--reference-span",
        0,
        1,
    )
    out = cli("inference", *command(tmp_path / "out", *TWO, *given))
    assert ("preset fast: sampler dpmsolver++, steps 3 (given; the preset's is 5), spacing trailing") in out
    said = records(tmp_path / "out")[0]
    assert [said[field] for field in FIELDS] == ["fast", [0.2, 0.9], 0.5, 1.0, [0, 1], [0, 1], "all", [0]]
    assert (said["sampler"], said["steps"]) == ("dpmsolver++", 3)
    words = ("--sampler", "dpmsolver++", "--spacing", "trailing", *given[2:])
    assert "2 images are in" in cli("inference", *command(tmp_path / "out", *words, "--dry-run"))
    line = cli.refused("inference", *command(tmp_path / "out", *words, "--guidance-interval", 0, 1, "--dry-run"))
    assert "was made with guidance_interval [0.2, 0.9], not [0.0, 1.0]" in line
    # an image does not depend on its batch, nor on how many steps are decoded at once
    cli("inference", *command(tmp_path / "one", *TWO, *given, "--batch-size", 1, "--steps-at-once", 3))
    for name, image in images(tmp_path / "one").items():
        assert close(image, images(tmp_path / "out")[name])


def test_older_records_mean_that_nothing_is_left_out(cli, command, made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    older = [{key: value for key, value in record.items() if key not in FIELDS} for record in records(out)]
    (out / "samples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in older))
    whole = ("--preset", "published", "--guidance-interval", 0, 1, "--mask-strength", 1, "--mask-span", 0, 1)
    assert "8 images are in" in cli("inference", *command(out, *whole, "--dry-run"))
    line = cli.refused("inference", *command(out, "--reuse-encoder", "branches", "--dry-run"))
    assert "was made with reuse_encoder none, not branches" in line


def test_the_defaults_are_the_published_way():
    model = create_model(SMALL, classes="MBRSC")
    assert SamplingOptions() == SamplingOptions.of_preset("published")
    assert guidance_of(model, SamplingOptions()) is None and sparing(model, SamplingOptions()) is model
    options = SamplingOptions.of_preset("fast", steps=9)
    assert (options.steps, options.sampler) == (9, PRESETS["fast"]["sampler"])


def test_what_cannot_be_is_refused(cli, command, tmp_path):
    for more, says in {
        ("--guidance-interval", "0.5", "0.5"): "--guidance-interval 0.5 0.5: write two numbers, 0 to 1, the lower one",
        ("--mask-span", "0", "2"): "--mask-span: 2: write a number, 0 to 1",
        ("--mask-strength", "-1"): "--mask-strength: -1: write a number, 0 to 10",
        ("--key-steps", "every-0"): "--key-steps every-0: write early, every-N",
        ("--key-steps", "3", "2"): "--key-steps 3 2: write early",
        ("--reuse-encoder", "all", "--key-steps", "1", "3"): "--key-steps 3: the last of 3 --ddim-steps is 2",
        ("--key-steps", "every-2"): "--key-steps every-2: of what? Set --reuse-encoder branches or all, too",
        ("--reuse-encoder", "branches", "--steps-at-once", "4"): "--steps-at-once 4: goes with --reuse-encoder all",
        ("--preset", "best"): "--preset: invalid choice",
    }.items():
        assert says in cli.refused("inference", *command(tmp_path / "none", *more))
    assert not (tmp_path / "none").exists()


def test_branches_are_kept_where_neither_guidance_nor_branch_changes():
    model = create_model(SMALL, classes="MBRSC")
    options = SamplingOptions(
        steps=10, reuse_encoder="all", key_steps=("every-4",), guidance_interval=(0.25, 1.0), mask_span=(0.5, 1.0)
    )
    reusing = sparing(model, options)
    # keys are 0, 4 and 8; the mask acts from step 5 on (time step 401), and guidance ends before step 7 (201)
    assert reusing._stretch == [0, 0, 0, 0, 4, 5, 5, 7, 8, 8]
    assert reusing.times == sorted(reusing.times, reverse=True)
