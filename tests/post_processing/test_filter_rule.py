import numpy as np
import pytest

from common.errors import InputError
from common.pairing import mask_name, pair_files
from post_processing.filter_rule import (
    HISTOGRAM_EDGES,
    class_counts,
    class_sums,
    filter_mask,
    loss_histogram,
    mean_loss,
    pixel_weights,
    relabel,
    thresholds,
)

MASK = np.array([[0, 0, 1], [1, 255, 2]], dtype=np.uint8)
LOSS = np.array([[1.0, 3.0, 0.5], [1.5, 9.0, 4.0]], dtype=np.float32)


def test_sums_leave_255_out():
    assert class_sums(LOSS, MASK, 4).tolist() == [4.0, 2.0, 4.0, 0.0]
    assert class_counts(MASK, 4).tolist() == [2, 2, 1, 0]


def test_the_mean_is_over_pixels_not_images():
    mean = mean_loss([[2.0, 0.0, 0.0], [10.0, 3.0, 0.0]], np.array([[1, 0, 0], [3, 2, 0]]))
    assert mean[:2].tolist() == [3.0, 1.5] and np.isnan(mean[2])


def test_the_mean_does_not_depend_on_the_order_of_images():
    rng = np.random.default_rng(0)
    sums, counts = rng.random((1000, 3)) * 10.0 ** rng.integers(-9, 9, (1000, 1)), rng.integers(1, 9, (1000, 3))
    order = rng.permutation(1000)
    assert mean_loss(sums.tolist(), counts).tobytes() == mean_loss(sums[order].tolist(), counts[order]).tobytes()


def test_a_dropped_pixel_is_relabeled_where_that_is_sure():
    kept = np.array([[0, 255, 1], [255, 255, 255]], dtype=np.uint8)  # of MASK: 255 was there before
    classes, sureness = np.full_like(MASK, 2), np.array([[1.0, 0.9, 1.0], [0.8999, 1.0, 0.95]])
    assert relabel(kept, MASK, classes, sureness, 0.9).tolist() == [[0, 2, 1], [255, 255, 2]]


def test_weights_fall_with_the_loss():
    limits = np.array([2.0, 0.0, np.inf])
    loss = np.array([[2.0, 0.0, 0.0], [0.1, 9.0, 4.0]])
    assert pixel_weights(loss, MASK, limits).tolist() == [[np.exp(-1), 1, 1], [0, 0, 1]]
    assert pixel_weights(np.full((2, 3), np.nan), MASK, limits[:2]).tolist() == [[0, 0, 0], [0, 0, 0]]
    unseen = thresholds(np.array([np.nan, np.nan, 1.0]))
    assert pixel_weights(loss, MASK, unseen).tolist() == [[0, 0, 0], [0, 0, np.exp(-3.2)]]


def test_only_a_loss_above_the_limit_is_dropped():
    mean = np.array([2.0, 1.0, np.nan])
    assert filter_mask(LOSS, MASK, thresholds(mean, 1.5)).tolist() == [[0, 0, 1], [1, 255, 255]]  # 3.0 and 1.5: at it
    below = np.nextafter(LOSS, np.float32(np.inf))
    assert filter_mask(below, MASK, thresholds(mean, 1.5)).tolist() == [[0, 255, 1], [255, 255, 255]]
    assert filter_mask(LOSS, MASK, thresholds(mean, 1.5, "keep")).tolist() == [[0, 0, 1], [1, 255, 2]]


def test_a_loss_that_is_no_number_is_dropped():
    assert filter_mask(np.full((1, 1), np.nan), np.zeros((1, 1), np.uint8), np.array([np.inf])).tolist() == [[255]]


def test_the_histogram_counts_every_pixel_once():
    loss = np.array([[0.0, 1e-9, 2.0], [50.0, 1e9, 2.0]], dtype=np.float32)
    histogram = loss_histogram(loss, np.array([[0, 0, 1], [1, 1, 255]], dtype=np.uint8), 3)
    assert histogram.sum(axis=1).tolist() == [2, 3, 0]
    assert histogram[0, 0] == 2 and histogram[1, -1] == 1  # outer bins take what lies beyond
    where = np.flatnonzero(histogram[1])[0]
    assert HISTOGRAM_EDGES[where] <= 2.0 < HISTOGRAM_EDGES[where + 1]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a_seed_7", "a"),
        ("a_seed_7_seed_-8", "a_seed_7"),
        ("a_seed_x", "a_seed_x"),
        ("_seed_1", "_seed_1"),
        ("a", "a"),
    ],
)
def test_the_mask_of_a_synthesized_image(image, mask):
    assert mask_name(image) == mask


def test_a_mask_of_the_whole_name_comes_first(tmp_path):
    images = {"a_seed_1": tmp_path / "i"}
    masks = {"a": tmp_path / "a.png", "a_seed_1": tmp_path / "a_seed_1.png"}
    pairs, orphans = pair_files(images, masks, ("--i", "--m"), skip_invalid=True)
    assert pairs[0].mask.name == "a_seed_1.png" and len(orphans) == 1
    with pytest.raises(InputError, match="no image has a mask of its name"):
        pair_files({"x": tmp_path / "x.png"}, masks, ("--i", "--m"), skip_invalid=True)
