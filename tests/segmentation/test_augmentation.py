"""Free tricks and weights of pixels, with known answers, and a training that uses all of them."""

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from torch.nn import functional as F

from common.errors import InputError
from common.images import Labels
from common.pixels import Pixels
from segmentation.augmentation import FourierStyle, PasteRareClasses, rare_classes, swap_amplitude, transfer_color
from segmentation.dataset import MaskDataset
from segmentation.options import TrainOptions
from segmentation.pixel_weights import PackWeightedInputs, ReadWeights
from segmentation.training import train, training_config
from segmentation.trees import entries


@pytest.fixture
def pair():
    """An image and a reference of muted colors, so that nothing is cut at 0 or 255."""
    rng = np.random.default_rng(0)
    return [rng.integers(low, high, (32, 24, 3), dtype=np.uint8) for low, high in ((90, 150), (110, 140))]


def test_fourier_style(pair):
    image, reference = pair
    assert (swap_amplitude(image, reference, 0) == image).all()
    assert (swap_amplitude(image, image, 0.2) == image).all()
    # beta 0.09 of 24 px: frequencies up to 2, in both directions
    found, given, wanted = (np.fft.fft2(x, axes=(0, 1)) for x in (swap_amplitude(image, reference, 0.09), *pair))
    low = np.zeros((32, 24), bool)
    low[np.ix_(np.arange(-2, 3), np.arange(-2, 3))] = True
    np.testing.assert_allclose(np.abs(found[low]), np.abs(wanted[low]), atol=40)  # rounding to whole numbers
    np.testing.assert_allclose(found[~low], given[~low], atol=40)
    turn = np.angle(found[low] / given[low])[np.abs(wanted[low]) > 1000]
    assert np.abs(turn).max() < 0.05


def test_fourier_style_of_many_bands_after_a_larger_reference(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    values = rng.integers(0, 256, (37, 29, 5), np.uint8)
    reference = Pixels(values, np.ones((37, 29), bool))
    image = rng.integers(0, 256, (32, 24, 5), np.uint8)
    made = FourierStyle(str(tmp_path), 0.1).changed(image, reference, None)
    one = np.ascontiguousarray(values[..., 4])
    wanted = swap_amplitude(image[..., 4:], cv2.resize(one, (24, 32), interpolation=cv2.INTER_AREA)[..., None], 0.1)
    assert (made[..., 4:] == wanted).all()


def test_color_transfer_reaches_mean_and_spread(pair):
    image, reference = pair
    lab, wanted = (
        cv2.cvtColor(x.astype(np.float32) / 255, cv2.COLOR_BGR2LAB) for x in (transfer_color(*pair), reference)
    )
    np.testing.assert_allclose(lab.mean((0, 1)), wanted.mean((0, 1)), atol=0.15)
    np.testing.assert_allclose(lab.std((0, 1)), wanted.std((0, 1)), atol=0.15)
    assert np.abs(transfer_color(image, image).astype(int) - image).max() <= 1
    flat = np.full((4, 4, 3), 100, np.uint8)
    assert (transfer_color(flat, flat) == flat).all()


def test_rare_classes_are_pasted(tmp_path):
    assert rare_classes(np.array([70, 20, 10, 0])) == [2] and rare_classes(np.array([51, 49])) == [1]
    ids = np.zeros((4, 6), np.uint8)
    ids[1, :2] = 2
    Image.fromarray(ids).save(tmp_path / "m.png")
    Image.fromarray(np.full((4, 6, 3), (1, 2, 3), np.uint8)).save(tmp_path / "i.png")
    step = PasteRareClasses(prob=1)
    step.take_pairs([(tmp_path / "i.png", tmp_path / "m.png")], Labels(4))
    random.seed(0)
    seen = set()
    for _ in range(8):
        given = {"img": np.zeros((3, 9, 3), np.uint8), "gt_seg_map": np.ones((3, 9), np.uint8)}
        found = step(dict(given, gt_weight_map=np.zeros((3, 9), np.uint8)))
        pasted = np.argwhere(found["gt_seg_map"] == 2).tolist()
        seen.add(str(pasted))
        assert (found["img"][found["gt_seg_map"] == 2] == (3, 2, 1)).all()  # BGR
        assert found["img"].any(-1).sum() == 2 == (found["gt_weight_map"] == 255).sum() and not given["img"].any()
    assert seen == {str([[1, 0], [1, 1]]), str([[1, 4], [1, 5]])}


def datasets(chain, **changes):
    prefix = {"img_path": "img_train", "seg_map_path": "label_train"}
    return MaskDataset(
        classes=str(chain.table), data_root=str(chain.root), data_prefix=prefix, pipeline=[], lazy_init=True, **changes
    ).load_data_list()


def test_parts_of_a_data_set_are_nested(make_chain):
    chain = make_chain()
    (chain.root / "syn").rename(chain.root / "resampled_img")
    (chain.root / "resampled_label").mkdir()
    for path in (chain.root / "resampled_img").iterdir():
        mask = chain.root / f"label_train/{path.stem.split('_seed_')[0]}.png"
        (chain.root / "resampled_label" / path.name).write_bytes(mask.read_bytes())
    joint = {"synthesized": str(chain.root)}

    def names(**changes):
        return [item["img_path"] for item in datasets(chain, **changes)]

    parts = [names(real_share=share) for share in (0.1, 0.6, 1.0)]
    assert [len(part) for part in parts] == [1, 2, 3] and set(parts[0]) < set(parts[1]) < set(parts[2]) == {*names()}
    amounts = [names(synthesized_per_real=amount, **joint) for amount in (0.4, 1.0, 2.0)]
    assert [len(amount) for amount in amounts] == [4, 6, 9] and amounts[2] == names(**joint)
    assert set(amounts[0]) < set(amounts[1]) < set(amounts[2])
    assert len(names(real_share=0, **joint)) == 6
    assert [len(names(real_share=0.6, synthesized_per_real=1, repeat=2, **joint))] == [2 * 2 + 2]
    # made of any mask's pieces
    layout = [f"resampled_{kind}/layout_000001_seed_1.png" for kind in ("img", "label")]
    for name in layout:
        (chain.root / name).write_bytes(next((chain.root / name).parent.iterdir()).read_bytes())
    assert len(names(**joint)) == 10
    few = names(real_share=0.3, **joint)  # one label: images painted from the other masks would bring theirs back
    assert {Path(name).stem.split("_seed_")[0] for name in few} == {Path(few[0]).stem} and len(few) == 3
    with pytest.raises(InputError, match=r"has 7 images; 3 for each of 3 real ones would be 9"):
        names(synthesized_per_real=3.0, **joint)
    with pytest.raises(InputError, match="leaves nothing to train on"):
        names(real_share=0)
    pasting = PasteRareClasses(classes=[0, 1, 2, 3, 4])
    where = {"classes": str(chain.table), "data_root": str(chain.root)}
    prefix = {"img_path": "img_train", "seg_map_path": "label_train"}
    MaskDataset(**where, data_prefix=prefix, pipeline=[pasting], real_share=0, **joint).full_init()
    assert len(pasting.donors) == 7  # without real images, what is pasted are the synthesized ones
    for name in layout:
        (chain.root / name).unlink()
    for path in (chain.root / "resampled_img").glob(f"{Path(few[0]).stem}_seed_*"):
        path.unlink()
    with pytest.raises(InputError, match=r"none of its images is of a mask that real_share 0.3 takes"):
        names(real_share=0.3, **joint)


def test_weights_move_with_the_image_and_scale_the_loss(joint_chain):
    """All of 255 is the loss without maps, to the bit; halves of the weights are halves of the loss."""
    shape = np.array(Image.open(joint_chain.root / "synth/resampled_label/r0_seed_1.png")).shape
    (joint_chain.root / "synth/resampled_weight").mkdir()
    path = joint_chain.root / "synth/resampled_weight/r0_seed_1.png"
    Image.fromarray(np.full(shape, 51, np.uint8)).save(path)
    options = {
        "config": joint_chain.config,
        "synthesized": joint_chain.root / "synth",
        "classes": joint_chain.table,
        "max_iters": 2,
        "augment": ("fda", "color_transfer", "copy_paste"),
        "references": joint_chain.root / "img_test",
        "augment_prob": 0.7,
        "rare_classes": ("name 3",),
    }
    config = training_config(TrainOptions(**options, loss_weights=True))
    (data,) = entries(config.train_dataloader, "MaskDataset")
    kinds = [step["type"] for step in data.pipeline]
    steps = ["PasteRareClasses", "ColorTransfer", "FourierStyle"]
    assert kinds == ["ReadImage", "ReadAnnotations", "ReadWeights", *steps, "RandomCrop", "PackWeightedInputs"]
    item = {"gt_seg_map": np.zeros(shape, np.uint8), "seg_fields": ["gt_seg_map"], "weight_path": str(path)}
    read = ReadWeights()(item)
    assert (read["gt_weight_map"] == 51).all() and read["seg_fields"] == ["gt_seg_map", "gt_weight_map"]
    packed = PackWeightedInputs()({**read, "img": np.zeros((*shape, 3), np.uint8)})
    weights = packed["data_samples"].gt_weight.data  # (1, H, W)

    losses = {}
    for sampler in (None, {"type": "PixelWeights"}):
        head = MODELS.build(Config({**config.model.decode_head, "sampler": sampler})._cfg_dict)
        torch.manual_seed(0)
        logits, labels = torch.randn(2, 5, 24, 32), torch.randint(0, 5, (2, 1, 24, 32))
        samples = [SegDataSample() for _ in range(2)]
        for sample, label in zip(samples, labels, strict=True):
            sample.set_data({"gt_sem_seg": type(packed["data_samples"].gt_sem_seg)(data=label)})
        for maps in ([torch.full((1, 24, 32), 255)] * 2, [weights[:, :24, :32], torch.full((1, 24, 30), 255)]):
            if sampler:
                head.sampler.maps = maps
            losses[bool(sampler), len(losses)] = head.loss_by_feat(logits, samples)["loss_ce"]
    plain, _, full, mixed = losses.values()
    assert torch.equal(plain, full)
    each = F.cross_entropy(logits, labels[:, 0], reduction="none")
    assert mixed == pytest.approx(float((0.2 * each[0]).sum() + each[1, :, :30].sum()) / each.numel(), rel=1e-5)

    path.unlink()
    with pytest.raises(InputError, match=r"r0_seed_1\.png: no such weight map"):
        train(TrainOptions(**options, loss_weights=True, work_dir=joint_chain.root / "none"))
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)
    done = train(TrainOptions(**options, loss_weights=True, work_dir=joint_chain.root / "weighted"))
    assert done.weights.name == "iter_2.pth"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": ("fda",)}, "name the images whose style it takes"),
        ({"augment": ("copy_paste",), "rare_classes": ("x",)}, "x: is none of name 0"),
        ({"loss_weights": True}, "needs synthesized DIR, with weight maps"),
        ({"pseudo_images": "a"}, "name both, or none"),
        ({"real_share": 1.5}, "1.5: write a number, 0 to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(make_chain, changes, message):
    chain = make_chain()
    with pytest.raises(InputError, match=message):
        options = TrainOptions(config=chain.config, classes=chain.table, work_dir=chain.root / "out", **changes)
        train(options)
