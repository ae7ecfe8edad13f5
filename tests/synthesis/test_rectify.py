"""A segmentor guides and chooses: against closed forms, and by the command."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.synthesis.judging import mask_scores
from cldm.synthesis.rectify import Rectifier
from common.errors import InputError
from common.files import file_hash
from ldm.models.autoencoder import SpaceToDepth
from tests.synthesis.conftest import close, images, records


class LinearJudge:
    """Logits W p + b of pixels p in 0..255."""

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias

    def look(self, images):
        logits = torch.einsum("kc,bchw->bkhw", self.weight.to(images), images) + self.bias.to(images)[:, None, None]
        return logits, logits.argmax(1)


def test_the_gradient_of_a_linear_layer_in_closed_form():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(4, 3, generator=generator) / 60, torch.randn(4, generator=generator)
    first_stage = SpaceToDepth(4)  # a rotation of the pixels: so is the gradient
    x0 = first_stage.encode(torch.rand(3, 3, 8, 8, generator=generator) * 2 - 1).mode()
    logits, found = LinearJudge(weight, bias).look((first_stage.decode(x0) + 1) * 127.5)
    labels = torch.randint(0, 4, found.shape, generator=generator)
    labels[0, :4] = 255
    labels[2] = found[2]  # nothing to correct
    wrong = (labels != 255) & (labels != found)
    rectifier = Rectifier(first_stage.decode, LinearJudge(weight, bias), labels.numpy().astype(np.uint8), 4, 0.5)

    one_hot = torch.nn.functional.one_hot(labels.clamp(max=3), 4).movedim(-1, 1)
    of_pixels = 127.5 * torch.einsum("kc,bkhw->bchw", weight, (logits.softmax(1) - one_hot) * wrong[:, None])
    expected = first_stage.encode(of_pixels).mode()
    with torch.inference_mode():  # as sampling is
        gradient, share = rectifier.gradient(x0.clone())
    assert torch.allclose(gradient, expected, atol=1e-4) and torch.allclose(share, wrong.float().mean((1, 2)))
    assert not (first_stage.decode(gradient) * ~wrong[:, None]).abs().max() > 1e-4

    length = expected.square().mean((1, 2, 3), keepdim=True).sqrt()
    for i in range(4):
        step = 0.5 * (1 - i / 4) * share.sqrt()[:, None, None, None] * expected / length.clamp(min=1e-9)
        assert torch.allclose(rectifier(i, x0), x0 - step, atol=1e-4)
    assert torch.equal(rectifier(4, x0), x0) and torch.equal(rectifier(0, x0)[2], x0[2])
    # the wrong pixels' values change by the scale, root mean square
    moved = (rectifier(0, x0) - x0)[1].square().sum() / (wrong[1].sum() * 3)
    assert moved.sqrt() == pytest.approx(0.5, rel=1e-3)
    for i in range(3):
        alone = Rectifier(first_stage.decode, rectifier.guide, rectifier.labels[i : i + 1], 4, 0.5)
        assert torch.allclose(alone(1, x0[i : i + 1]), rectifier(1, x0)[i : i + 1], atol=1e-6)


@pytest.fixture(scope="module")
def segmentor(scenes, tmp_path_factory):
    """A config and weights: the class of a pixel is that of the nearest of some colors."""
    from tests.segmentation.pixel_backbone import write_config

    folder = tmp_path_factory.mktemp("segmentor")
    classes = scenes / "classes.json"
    count = len(json.loads(classes.read_text())["classes"])
    config = write_config(folder / "config.py", count, str(classes), str(scenes))
    mean, std = torch.tensor([120.0, 110, 100]), torch.tensor([60.0, 55, 50])
    colors = (torch.rand(count, 3, generator=torch.Generator().manual_seed(3)) * 255 - mean) / std
    state = {"conv_seg.weight": 4 * colors[..., None, None], "conv_seg.bias": -2 * colors.square().sum(1)}
    weights = folder / "weights.pth"
    torch.save({"state_dict": {f"decode_head.{name}": value for name, value in state.items()}}, weights)
    return config, weights


@pytest.fixture(scope="module")
def judge(segmentor):
    from segmentation.judge import open_judge

    return open_judge(*segmentor)


@pytest.fixture
def few(command, scenes, tmp_path):
    """The command for the first three items."""
    items = tmp_path / "items.json"
    items.write_text("\n".join((scenes / "inference_set_items.json").read_text().splitlines()[:3]))
    return lambda outdir, *more: command(tmp_path / outdir, "--txt-file", items, *more)


def scores_of(judge, folder):
    pictures, said = images(folder), records(folder)
    made = np.stack([pictures[f"{record['name']}.png"] for record in said])
    return mask_scores(judge, made, [record["mask"] for record in said])


@pytest.mark.parametrize("resized", [False, True])
def test_what_tensors_show_is_what_files_show(judge, made, segmentor, tmp_path, resized):
    from segmentation.inference import segment
    from segmentation.judge import open_judge

    if resized:
        config = in_test_pipeline(segmentor[0], tmp_path / "resizes.py", 'type="Resize", scale=(56, 40)')
        judge = open_judge(config, segmentor[1])
    files = sorted(made.glob("[!.]*.png"))
    found = segment(judge.segmentor, [(path, None) for path in files], [range(len(files))], 0)
    pixels = torch.from_numpy(np.stack([np.array(Image.open(path)) for path in files])).movedim(-1, 1).float()
    logits, classes = judge.look(pixels)
    for i, prediction in enumerate(found):
        # resized gray levels of files are rounded
        assert (prediction.logits - logits[i]).abs().max() < (0.5 if resized else 1e-4)
        assert (prediction.classes == classes[i].numpy()).mean() > (0.98 if resized else 0.9999)


def in_test_pipeline(config, changed, step):
    """A config with one more step before its test's images are packed."""
    training, test = config.read_text().split("test_dataloader")
    pack = 'dict(type="Pack'
    changed.write_text(f"{training}test_dataloader{test.replace(pack, f'dict({step}), {pack}')}")
    return changed


def test_guided_images_show_their_masks_and_the_best_candidate_is_kept(cli, few, made, segmentor, judge, tmp_path):
    guided = ("--rectify", *segmentor, "--rectify-steps", 3, "--rectify-scale", "0.8")
    cli("inference", *few("guided", *guided))
    cli("inference", *few("best", *guided, "--candidates", 3))
    cli("inference", *few("single", *guided, "--candidates", 3, "--batch-size", 1))
    plain, once, best = (scores_of(judge, folder)[:3] for folder in (made, tmp_path / "guided", tmp_path / "best"))
    assert np.mean(once) > np.mean(plain) + 0.2
    for name, image in images(tmp_path / "best").items():
        assert close(image, images(tmp_path / "single")[name])
    said = records(tmp_path / "best")
    assert [record["candidate"] for record in said] == [int(np.argmax(record["scores"])) for record in said]
    assert any(record["candidate"] for record in said) and {len(record["scores"]) for record in said} == {3}
    assert [record["scores"][0] for record in said] == pytest.approx(once, abs=1e-4)
    assert [max(record["scores"]) for record in said] == pytest.approx(best, abs=1e-4)
    assert said[0]["judge_hash"] == said[0]["rectify_hash"] == file_hash(segmentor[1])

    said = records(tmp_path / "guided")[0]
    assert (said["rectify"], said["rectify_steps"], said["rectify_scale"], said["scores"]) == (
        "weights.pth",
        3,
        0.8,
        [],
    )
    assert "3 images are in" in cli("inference", *few("guided", *guided))
    other = (*guided, "--rectify-scale", "0.5")
    assert "rectify_scale 0.8, not 0.5" in cli.refused("inference", *few("guided", *other))
    assert f"rectify_hash {said['rectify_hash']}, not none" in cli.refused("inference", *few("guided"))


def test_only_poor_images_are_made_again(cli, few, made, segmentor, judge, tmp_path):
    scores = scores_of(judge, made)[:3]
    limit = sorted(scores)[1]
    cli("inference", *few("again", "--judge", *segmentor, "--retry", 2, "--retry-below", limit))
    said = records(tmp_path / "again")
    assert [record["scores"][0] for record in said] == pytest.approx(scores, abs=1e-4)
    assert [len(record["scores"]) > 1 for record in said] == [score < limit for score in scores]
    before = images(made)
    kept = [close(image, before[name]) for name, image in images(tmp_path / "again").items()]
    assert kept == [record["candidate"] == 0 for record in said]


def test_what_cannot_be_is_refused_before_the_work(cli, few, segmentor, tmp_path):
    refused = {
        ("--candidates", 2): "--candidates, --retry: need a segmentor",
        ("--judge", *segmentor): "--judge: has nothing to choose from",
        ("--rectify", *segmentor, "--rectify-steps", 4): "--rectify-steps 4: there are 3",
    }
    for more, says in refused.items():
        assert says in cli.refused("inference", *few("none", *more))
    normalizes = 'type="Normalize", mean=[0.0, 0.0, 0.0], std=[9.0, 9.0, 9.0], to_rgb=False'
    config = in_test_pipeline(segmentor[0], tmp_path / "normalizes.py", normalizes)
    line = cli.refused("inference", *few("none", "--rectify", config, segmentor[1], "--rectify-steps", 1))
    assert "does more to an image than to load and resize it" in line
    assert not (tmp_path / "none").exists()


def test_without_a_judge_nothing_is_chosen():
    from cldm.synthesis.candidates import best_candidates
    from cldm.synthesis.options import SamplingOptions

    with pytest.raises(InputError, match="judge"):
        best_candidates(lambda *_: None, {"name": ["a"]}, SamplingOptions(candidates=2), None)


def test_a_list_may_say_its_seeds(cli, command, scenes, tmp_path):
    line = json.loads((scenes / "inference_set_items.json").read_text().splitlines()[0])
    items = tmp_path / "items.json"
    items.write_text("\n".join(json.dumps({**line, "seeds": seeds}) for seeds in ([0, 4], [1])))
    given = command(tmp_path / "out", "--txt-file", items, "--ddim-steps", 1)
    assert "2 items, seeds of their own: 0 images are in" in cli("inference", *given)
    assert {record["name"]: record["seed"] for record in records(tmp_path / "out")} == {
        f"train_0000_seed_{seed}": seed for seed in (0, 1, 4)
    }
    assert "no such image" in cli.refused("inference", *given, "--only", "train_0000_seed_2")
