"""Several test domains, and the reconstruction check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from gss import InputError
from gss.maskige import Maskige
from gss.mseg import read_taxonomy
from gss.palette import load_palette
from gss.roundtrip import class_iou, confusion, round_trip
from segmentation.inference import Segmentor, pixel_losses, prediction_of
from segmentation.labels import LabelRule
from segmentation.prediction import sure_classes
from segmentation.views import MeanOfViews

TAXONOMY = (
    "Parent\tstreet\thome\tuniversal\nx\troad\t\tlane\nx\troad\tfloor\tground\nx\tcar\ttoy\tcar\n\t\t\tunlabeled\n"
)
DOMAINS = {"street": ["car", "road"], "home": ["floor", "toy"]}


@pytest.fixture
def taxonomy(tmp_path):
    path = tmp_path / "taxonomy.tsv"
    path.write_text(TAXONOMY)
    return path


def multi(taxonomy, domains=None, **changes):
    return {"type": "MultiDomainEncoderDecoder", "taxonomy": str(taxonomy), "domains": domains or DOMAINS, **changes}


def test_domains_get_the_sum_of_their_universal_classes(tiny_model, taxonomy):
    names, _ = read_taxonomy(str(taxonomy))
    assert names == ["lane", "ground", "car"]
    model = tiny_model(segmentor=multi(taxonomy)).eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        universal = model.predict(image)[0].seg_logits.data
        model.domain = "street"
        street = model.predict(image)[0].seg_logits.data
        samples = [SegDataSample(metainfo={"img_shape": (64, 64), "ori_shape": (64, 64), "domain": "home"})]
        home = model.predict(image, samples)[0].seg_logits.data
    torch.testing.assert_close(street, torch.stack([universal[2], universal[0] + universal[1]]))
    torch.testing.assert_close(home, universal[1:])
    assert model.predicted_classes == len(street) == 2


def test_logits_are_turned_into_probabilities_first(tiny_model, taxonomy):
    model = tiny_model("GenerativeSegHeadFTW", multi(taxonomy, freeze_backbone=True)).eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        probabilities = model.predict(image)[0].seg_logits.data.softmax(0)
        model.domain = "street"
        street = model.predict(image)[0].seg_logits.data
    torch.testing.assert_close(street, torch.stack([probabilities[2], probabilities[0] + probabilities[1]]))
    torch.testing.assert_close(street.sum(0), torch.ones(64, 64))


def as_sample(scores, **meta):
    sample = SegDataSample(metainfo=meta)
    sample.set_data({"seg_logits": PixelData(data=scores), "pred_sem_seg": PixelData(data=scores.argmax(0)[None])})
    return sample


def as_segmentor(model):
    config, table = Config({"model": {"type": "EncoderDecoder"}}), np.arange(256, dtype=np.int16)
    return Segmentor(model, config, ["a", "b", "c"], LabelRule(table, 3), Path("weights.pth"))


def of_domain(tiny_model, taxonomy):
    return tiny_model("GenerativeSegHeadFTW", multi(taxonomy, domain="street")).eval()


def by_meta(tiny_model, taxonomy):
    return tiny_model("GenerativeSegHeadFTW", multi(taxonomy)).eval()


def of_votes(tiny_model, taxonomy):
    return tiny_model().eval()


@pytest.mark.parametrize("build", [of_votes, of_domain, by_meta])
def test_probabilities_are_not_taken_for_logits(tiny_model, taxonomy, build):
    segmentor = as_segmentor(build(tiny_model, taxonomy))
    meta = {"domain": "home"} if build is by_meta else {}
    shares = torch.tensor([[1.0, 0.0, 0.3], [0.0, 0.0, 0.7], [0.0, 1.0, 0.0]])[:, None]  # (3, 1, 3)
    found = prediction_of(0, np.zeros((1, 3), np.uint8), as_sample(shares, **meta), Path("x.png"), segmentor)
    torch.testing.assert_close(found.logits.softmax(0), shares, atol=1e-5, rtol=0)
    losses = pixel_losses(found.logits, np.array([[0, 0, 0]], np.uint8))
    assert losses[0] == pytest.approx([0, -np.log(1e-6), -np.log(0.3)], abs=1e-4)
    assert sure_classes(found, 0.9).tolist() == [[0, 2, 255]]
    other = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 1, 3)
    (mean,) = MeanOfViews(module=segmentor.model).merge_preds([[as_sample(one, **meta) for one in (shares, other)]])
    torch.testing.assert_close(mean.seg_logits.data.softmax(0), (shares + other) / 2, atol=1e-5, rtol=0)


def test_logits_stay_as_they_are(tiny_model, taxonomy):
    """Of graded votes, of a learned way back, of universal classes; folders of those before have the same settings."""
    scores = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0)) * 50
    before = as_segmentor(torch.nn.Identity()).settings()
    for model in (tiny_model(color_std=20.0), tiny_model("GenerativeSegHeadFTW"), by_meta(tiny_model, taxonomy)):
        segmentor = as_segmentor(model)
        found = prediction_of(0, np.zeros((1, 4), np.uint8), as_sample(scores), Path("x.png"), segmentor)
        assert torch.equal(found.logits, scores) and segmentor.settings() == before
    assert before not in (as_segmentor(build(tiny_model, taxonomy)).settings() for build in (of_votes, of_domain))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"taxonomy": "nowhere.tsv"}, "taxonomy nowhere.tsv: No such file"),
        ({"domains": {"sea": ["boat"]}}, "no column sea; it has Parent, street"),
        ({"domains": {"home": ["floor", "toy", "roof"]}}, "no universal class belongs to roof"),
        ({"domain": "sea"}, "domain: sea needs taxonomy"),
    ],
)
def test_bad_taxonomies(tiny_model, taxonomy, change, words):
    with pytest.raises(InputError, match=words):
        tiny_model(segmentor=multi(taxonomy) | change)


def test_bad_taxonomy_files(tiny_model, taxonomy):
    taxonomy.write_text(TAXONOMY.replace("road\t\tlane", "{road, path}\t\tlane"))
    with pytest.raises(InputError, match="'lane'; a test set's column names one class a row"):
        tiny_model(segmentor=multi(taxonomy))
    taxonomy.write_text(TAXONOMY + "x\t\t\tboat\n")
    with pytest.raises(InputError, match="4 universal classes, num_classes=3"):
        tiny_model(segmentor=multi(taxonomy))
    taxonomy.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="'universal'"):
        tiny_model(segmentor=multi(taxonomy))


class Perfect:
    """A dVAE that loses nothing, and notes the sizes that it sees."""

    def __init__(self):
        self.sizes = []

    def tokens(self, image):
        self.sizes.append(tuple(image.shape[-2:]))
        return image

    def decode(self, tokens):
        return tokens


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_round_trip_of_any_size(scale):
    maskige, dvae = Maskige(load_palette("mbrsc")), Perfect()
    labels = torch.randint(0, 5, (2, 21, 30), generator=torch.Generator().manual_seed(0))
    found, colors = round_trip(labels, maskige, dvae, scale)
    assert (found == labels).all()
    assert colors.shape == (2, 3, 21 * scale, 30 * scale)
    assert all(side % 8 == 0 for side in dvae.sizes[0])


def test_iou():
    true = torch.tensor([0, 0, 1, 1, 255])
    iou = class_iou(confusion([(true, torch.tensor([0, 1, 1, 1, 0]))], 3))
    assert iou[:2].tolist() == pytest.approx([1 / 2, 2 / 3]) and iou[2].isnan()


def test_reconstruction_model(tiny_weights):
    palette = load_palette("mbrsc").tolist()
    head = {"type": "ReconstructionHead", "palette": palette, "num_classes": 5, "d_vae": {"weights": str(tiny_weights)}}
    config = {"type": "MaskigeReconstruction", "backbone": {"type": "NoneBackbone"}, "decode_head": head}
    model = MODELS.build({**config, "test_cfg": {"mode": "whole"}}).eval()
    labels = torch.randint(0, 5, (1, 20, 30), generator=torch.Generator().manual_seed(0))
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    found = model.predict(torch.zeros(1, 3, 20, 30), [sample])[0].pred_sem_seg.data
    expected, _ = round_trip(labels, model.decode_head.maskige, model.decode_head.d_vae)
    assert torch.equal(found, expected) and found.shape == labels.shape
    with pytest.raises(InputError, match="no mask"):
        model.predict(torch.zeros(1, 3, 20, 30), [SegDataSample()])
    with pytest.raises(InputError, match="nothing to train"):
        model.loss(torch.zeros(1, 3, 20, 30), [sample])
