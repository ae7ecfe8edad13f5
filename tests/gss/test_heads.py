"""The heads within mmseg's segmentors: whole and slide mode, training, what is frozen, and refused input."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from gss import InputError
from gss.dvae import DVAE
from tests.gss.conftest import TINY

HEADS = ("GenerativeSegHeadFF", "GenerativeSegHeadFFSingleFusion", "GenerativeSegHeadFTW")


def batch(size=(64, 64), count=2, top=3):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, top, (count, 1, *size), generator=generator)
    labels[:, :, :4] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    return torch.randn(count, 3, *size, generator=generator), samples


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(64, 96), (50, 75)])  # 50 x 75: no multiple of 8, nor of the windows
def test_whole_and_slide(tiny_model, head, size):
    image, _ = batch(size, 1)
    model = tiny_model(head).eval()
    with torch.no_grad():
        result = model.predict(image)[0]
    assert result.seg_logits.data.shape == (3, *size) and result.pred_sem_seg.data.shape == (1, *size)

    slide = {"mode": "slide", "crop_size": (32, 32), "stride": (24, 24)}
    model = tiny_model(head, {"test_cfg": slide}).eval()
    with torch.no_grad():
        found = model.predict(image)[0].seg_logits.data
        total, count = torch.zeros(3, *size), torch.zeros(*size)
        starts = [sorted({min(start, side - 32) for start in range(0, side - 8, 24)}) for side in size]
        for y in starts[0]:
            for x in starts[1]:
                window = (..., slice(y, y + 32), slice(x, x + 32))
                meta = [{"img_shape": (32, 32), "ori_shape": (32, 32)}]
                total[window] += model.encode_decode(image[window], meta)[0]
                count[window] += 1
    torch.testing.assert_close(found, total / count)


@pytest.mark.parametrize("head", HEADS)
def test_training_moves_what_should_learn_alone(tiny_model, head):
    frozen = {"type": "GenerativeEncoderDecoder", "freeze_backbone": True} if head.endswith("FTW") else {}
    model = tiny_model(head, frozen).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    image, samples = batch()
    truth = [sample.gt_sem_seg.data.clone() for sample in samples]
    losses = model.loss(image, samples)
    sum(value for name, value in losses.items() if "loss" in name).backward()
    optimizer.step()

    assert all((sample.gt_sem_seg.data == true).all() for sample, true in zip(samples, truth, strict=True))
    assert not model.decode_head.d_vae.training
    after = model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    learned = ("projection", "post_transformer_block", "post_swin_ln", "cls_segmap")
    if head.endswith("FTW"):
        assert {name.split(".")[1] for name in changed} == set(learned)
        assert not model.backbone.training and not model.decode_head.fusion_conv.bn.training
        assert model.decode_head.projection.bn.training
    else:
        assert not any("d_vae" in name for name in changed)
        assert {"conv_seg", "conv_seg_pixel", "convs"} <= {name.split(".")[1] for name in changed}
        assert any(name.startswith("backbone") for name in changed)


def test_single_fusion_is_an_option(tiny_model):
    option, named = tiny_model(single_fusion=True), tiny_model("GenerativeSegHeadFFSingleFusion")
    assert list(option.state_dict()) == list(named.state_dict())
    assert option.decode_head.conv_seg_pixel.in_channels == 8


def test_an_ignored_image_gives_no_loss(tiny_model):
    image, samples = batch()
    for sample in samples:
        sample.gt_sem_seg.data.fill_(255)
    losses = tiny_model().loss(image, samples)
    assert losses["decode.loss_ce"] == 0 and losses["decode.loss_ce_pixel"] == 0


def test_graded_scores_agree_with_votes(tiny_model):
    image, _ = batch((64, 64), 1)
    image = torch.nn.functional.interpolate(image, (128, 128))  # maskige of 256 x 256, scores at its size
    with torch.no_grad():
        votes, graded = tiny_model().eval(), tiny_model(color_std=20.0).eval()
        features = votes.extract_feat(image)
        meta = [{"img_shape": (256, 256)}]
        one_hot, likelihood = (m.decode_head.predict(features, meta, None) for m in (votes, graded))
    assert (one_hot.argmax(1) == likelihood.argmax(1)).all()
    torch.testing.assert_close(graded.decode_head.probabilities(likelihood).sum(1), torch.ones(1, 256, 256))


@pytest.mark.parametrize("head", HEADS)
def test_ids_beyond_the_palette_are_refused(tiny_model, head):
    image, samples = batch(top=5)  # ids 3 and 4: FF's palette knows 3 as ignore
    with pytest.raises(InputError, match=r"\d+ pixels have"):
        tiny_model(head).loss(image, samples)


@pytest.mark.parametrize("head", HEADS)
def test_what_a_loss_compares_is_said_or_known_by_its_published_name(tiny_model, head):
    image, samples = batch()
    loss = {"type": "CrossEntropyLoss"}
    said = [{**loss, "predicts": "pixels", "loss_name": name} for name in ("loss_a", "loss_b")]
    named = [{**loss, "loss_name": "loss_ce"}, {**loss, "loss_name": "loss_ce_pixel"}]
    values = tiny_model(head, loss_decode=said).loss(image, samples)
    assert values["decode.loss_a"] == values["decode.loss_b"]
    published = tiny_model(head, loss_decode=named)
    found = published.loss(image, samples)
    if head.endswith("FTW"):  # has pixels alone, whatever a published loss is called
        assert published.decode_head.predicts == ("pixels", "pixels")
        assert found["decode.loss_ce"] == found["decode.loss_ce_pixel"]
        said[0]["predicts"] = "tokens"
        with pytest.raises(InputError, match=r"^loss_decode\[0\].predicts: is tokens; this head predicts pixels$"):
            tiny_model(head, loss_decode=said)
    else:
        assert published.decode_head.predicts == ("tokens", "pixels")
        assert found["decode.loss_ce"] != found["decode.loss_ce_pixel"] == values["decode.loss_a"]
    with pytest.raises(InputError, match=r"^loss_decode\[0\].predicts: is edges; this head predicts"):
        tiny_model(head, loss_decode={**loss, "predicts": "edges"})


def test_color_std_is_taken_by_its_name_until_1_0(tiny_model):
    assert tiny_model(colour_std=20.0).decode_head.color_std == 20.0
    assert tiny_model("GenerativeSegHeadFFSingleFusion", colour_std=20.0).decode_head.color_std == 20.0
    assert tiny_model(colour_std=20.0, color_std=30.0).decode_head.color_std == 30.0


@pytest.mark.parametrize("ignored", [9, 254])
def test_the_heads_ignore_index_is_obeyed(tiny_model, ignored):
    """Pixels of another id to ignore than 255 give the same losses."""
    image, samples = batch()
    expected = tiny_model().loss(image, samples)
    for sample in samples:
        truth = sample.gt_sem_seg.data
        truth[truth == 255] = ignored
    found = tiny_model(ignore_index=ignored).loss(image, samples)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_palette_and_classes_must_agree(tiny_model):
    with pytest.raises(InputError, match="num_classes=4 needs 5"):
        tiny_model(num_classes=4)


def test_dvae_weights(tiny_model, tmp_path, tiny_weights):
    with pytest.raises(InputError, match=r"weights nowhere.pth: no such file"):
        tiny_model(d_vae={"weights": "nowhere.pth"})
    other = {**TINY, "encoder": {**TINY["encoder"], "n_hid": 8}}
    with pytest.raises(InputError, match=r"encoder.blocks.input.w has the shape \(4, 3, 7, 7\), .* \(8, 3, 7, 7\)"):
        tiny_model(d_vae={"weights": str(tiny_weights), **other})
    torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="is it a dVAE or a GSS checkpoint"):
        tiny_model(d_vae={"weights": str(tmp_path / "other.pth")})
    image, samples = batch()
    with pytest.raises(InputError, match="d_vae: has no weights"):
        tiny_model(d_vae=TINY).loss(image, samples)


def test_a_checkpoint_brings_the_dvae(tiny_model, tmp_path):
    trained, fresh = tiny_model(), tiny_model(d_vae=TINY)
    fresh.load_state_dict(trained.state_dict())
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "gss.pth")
    alone = DVAE(str(tmp_path / "gss.pth"))  # taken out of it, with its size
    image = 255 * torch.rand(1, 3, 16, 24)
    assert torch.equal(alone.tokens(image), fresh.decode_head.d_vae.tokens(image))


def test_image_sizes_of_the_dvae(tiny_weights):
    dvae = DVAE(str(tiny_weights)).train()
    assert not dvae.training and not any(p.requires_grad for p in dvae.parameters())
    with pytest.raises(InputError, match="image of 20 x 24 pixels: the dVAE takes multiples of 8"):
        dvae.tokens(torch.rand(1, 3, 20, 24))


def test_tokens_and_colors_are_those_of_32_bit_in_a_training_in_16():
    torch.manual_seed(0)
    dvae = DVAE(**TINY)
    dvae.loaded = True
    colors = 255 * torch.rand(2, 3, 32, 32)
    logits, back = dvae.logits(colors), dvae.decode(dvae.tokens(colors))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dvae.logits(colors), logits) and torch.equal(dvae.decode(dvae.tokens(colors)), back)
