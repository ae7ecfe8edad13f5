import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from common.scores import confusion, scores
from evaluation.arms_text import curve_table, headline
from evaluation.comparison import compare, compare_arms, holm, paired_difference, verdict
from evaluation.copies import nearest, symmetries, thumbnail
from evaluation.figures import classes_figure, seeds_figure
from evaluation.page import gallery, page, sentence

BASELINE, JOINT = [0.50, 0.52, 0.47, 0.55, 0.51], [0.53, 0.52, 0.52, 0.57, 0.55]


def metrics(score):
    return {"OA": score, "mIoU": score / 2, "mAcc": score, "classes": {"a": {"IoU": score}, "<b>": {"IoU": None}}}


def test_the_interval_is_the_paired_t_test():
    entry = paired_difference(BASELINE, JOINT)
    expected = stats.ttest_rel(JOINT, BASELINE).confidence_interval(0.95)
    assert (entry["difference"]["low"], entry["difference"]["high"]) == pytest.approx((expected.low, expected.high))
    assert entry["difference"]["mean"] == pytest.approx(0.028)
    assert entry["baseline"]["sd"] == pytest.approx(np.std(BASELINE, ddof=1))


def test_holms_correction_by_hand():
    """Of 0.01, 0.04, 0.03, 0.005: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which may not fall below that."""
    assert holm([0.01, 0.04, 0.03, None, 0.005]) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert holm([0.4, 0.6]) == [0.8, 0.8] and holm([]) == []


def test_many_arms_are_judged_by_corrected_p():
    """One arm's interval leaves out 0 by itself; of two arms that is not enough."""
    baseline = [metrics(x) for x in BASELINE]
    arms = {"joint": [metrics(x) for x in JOINT], "fda": [metrics(x - y) for x, y in zip(BASELINE, JOINT, strict=True)]}
    alone = compare_arms(baseline, {"joint": arms["joint"]})["joint"]
    p = alone["scores"]["mIoU"]["difference"]["p"]
    assert alone["verdict"] == "better" and alone["p_holm"] == p == pytest.approx(
        stats.ttest_rel(JOINT, BASELINE).pvalue
    )
    both = compare_arms(baseline, {**arms, "copy": [metrics(x + 0.002 * i) for i, x in enumerate(JOINT)]})
    assert both["fda"]["verdict"] == "worse" and both["joint"]["p_holm"] > p
    for name, arm in both.items():
        arm |= {"iterations": 10, "free": name != "joint"}
    best = {"free": "copy", "painted": "joint", **paired_difference(BASELINE, JOINT)}
    text = " ".join(headline("test", both, best))
    said = ["Helps:</b> none", "Harms:</b> fda -", "effect:</b> copy", "joint +1.40"]
    assert sorted(said, key=text.index) == said
    for words in (
        f"corrected p {both['joint']['p_holm']:.3f}",
        "5 seeds",
        "trick, copy, by +2.80 points (95 % interval",
    ):
        assert words in text
    point = {"value": 0.5, **paired_difference(BASELINE, JOINT)}
    assert "50% of the real images" in curve_table("share", [point]) and "+2.80" in curve_table("amount", [point])


def test_a_score_that_is_not_defined_leaves_its_seed_out():
    assert paired_difference([0.1, None, 0.3], [0.2, 0.3, None])["seeds"] == 1
    assert paired_difference([None], [0.5]) is None


@pytest.mark.parametrize(("shift", "word"), [(0.1, "better"), (-0.1, "worse"), (0.0, "unclear")])
def test_the_verdict(shift, word):
    noise = np.array([0.01, -0.01, 0.0, 0.01, -0.01])
    assert verdict(paired_difference(list(0.5 + noise * 0), list(0.5 + shift + noise))["difference"]) == word


def test_one_seed_gives_no_verdict():
    result = compare([metrics(0.4)], [metrics(0.9)])
    assert result["verdict"] == "unclear" and "a single seed says nothing" in sentence("test", result)


def test_two_seeds_are_few():
    for seeds, words in ((2, ": it harms, as far as 2 seeds can tell."), (3, ": it harms.")):
        baseline, joint = [metrics(0.5 + i / 100) for i in range(seeds)], [metrics(0.4 + i / 100) for i in range(seeds)]
        assert sentence("test", compare(baseline, joint)).endswith(words)


class Page(HTMLParser):
    """Collects what a browser would fetch, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.sources, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for key, value in attributes if key in ("src", "href", "xlink:href") and value]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone():
    baseline, joint = [metrics(x) for x in BASELINE], [metrics(x) for x in JOINT]
    result = compare(baseline, joint)
    plots = [seeds_figure(baseline, joint, ["OA", "mIoU"]), classes_figure(result["classes"])]
    mask = np.array([[0, 1], [255, 1]], dtype=np.uint8)
    items = [
        {
            "name": "x_seed_1",
            "caption": "<script>",
            "mask": mask,
            "reference": None,
            "image": Image.new("RGB", (600, 300)),
            "filtered": mask,
        }
    ]
    pictures = gallery(items, ["a", "<b>"], np.array([[255, 0, 0], [0, 255, 0]], dtype=np.uint8))
    text = page({"test": result}, {"test": plots}, {"options": "x"}, pictures)
    parser = Page()
    parser.feed(text)
    assert not parser.open
    assert all(source.startswith(("data:", "#")) for source in parser.sources)
    assert not re.search(r"url\((?!['\"]?#)|@import|<script", text)
    assert "it helps" in text and "&lt;script&gt;" in text and "not in the test set" in text
    assert "+2.80" in text and "#ff0000" in text and "reference: not given" in text


def test_scores_agree_with_torchmetrics():
    rng = np.random.default_rng(0)
    mask, prediction = rng.integers(0, 4, (50, 40)).astype(np.uint8), rng.integers(0, 4, (50, 40))
    mask[:5] = 255
    report = scores(confusion(prediction, mask, 4), list("abcd"))
    target = torch.from_numpy(mask).long()
    found = torch.from_numpy(prediction)
    for key, metric in (
        ("OA", MulticlassAccuracy(4, average="micro", ignore_index=255)),
        ("mAcc", MulticlassAccuracy(4, average="macro", ignore_index=255)),
        ("mIoU", MulticlassJaccardIndex(4, ignore_index=255)),
    ):
        assert report[key] == pytest.approx(float(metric(found, target)))
    alone = scores(confusion(np.zeros((2, 2), int), np.zeros((2, 2), np.uint8), 2), ["a", "b"])
    assert alone["classes"]["b"] == {"IoU": None, "Acc": None} and alone["mIoU"] == 1


def test_copies_are_found_in_any_orientation(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(12):
        blocks = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(blocks).save(tmp_path / f"{index}.png")
    copied = Image.open(tmp_path / "7.png").transpose(Image.Transpose.TRANSVERSE)
    copied.save(tmp_path / "copy.jpg", quality=95, subsampling=0)
    pool = np.stack([thumbnail(tmp_path / f"{index}.png") for index in range(12)])
    distance, index = nearest(thumbnail(tmp_path / "copy.jpg")[None], pool)
    assert index[0] == 7 and distance[0] < 0.02
    others, _ = nearest(pool, pool, leave_out_self=True)
    assert (others > 0.1).all()
    brute = min(np.sqrt(((turned - other) ** 2).mean()) for turned in symmetries(pool[:1])[:, 0] for other in pool[1:])
    assert others[0] == pytest.approx(brute, rel=1e-6)
    assert len({turned.tobytes() for turned in symmetries(pool[:1])}) == 8
