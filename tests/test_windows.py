"""Windows cover a scene, and their weights sum to one; noise does not know them."""

import numpy as np
import pytest

from cldm.scenes.noise import BLOCK, block_seed, fill_with_noise
from common.rng import item_noise
from common.windows import Blend, Grid, grid, tiles, windows


@pytest.mark.parametrize("length", [16, 17, 24, 61, 200])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_weights_sum_to_one(length, overlap):
    for of_scene in (grid((length, 16), (16, 16), overlap), tiles((length, 16), (16, 16), 4)):
        axis, total = of_scene.rows, np.zeros(length * of_scene.rows.scale)
        for start, weight in zip(axis.starts, axis.weights, strict=True):
            total[start * axis.scale :][: len(weight)] += weight
        np.testing.assert_allclose(total, 1, atol=1e-6)
        assert axis.starts[0] == 0 and axis.starts[-1] == length - 16
        assert [axis.final(i)[1] for i in range(len(axis))][:-1] == list(axis.starts[1:])
        assert axis.final(len(axis) - 1)[1] == length


def test_half_an_overlap_is_hann():
    axis = windows(64, 16, 8, ramp=8)
    np.testing.assert_allclose(axis.weights[3], np.sin(np.pi * (np.arange(16) + 0.5) / 16) ** 2, rtol=1e-5)


def test_a_blend_row_by_row_is_the_whole_sum():
    of_scene = grid((40, 24), (16, 16), 0.6)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(len(of_scene.rows), len(of_scene.columns), 3, 16, 16)).astype(np.float32)
    whole = np.zeros((3, 40, 24))
    parts, blend = [], Blend(3, of_scene)
    for i, top in enumerate(of_scene.rows.starts):
        blend = Blend(3, of_scene, blend.carried)  # as after a stop
        for j, left in enumerate(of_scene.columns.starts):
            weight = of_scene.rows.weights[i][:, None] * of_scene.columns.weights[j]
            whole[:, top : top + 16, left : left + 16] += weight * values[i, j]
            blend.add(i, j, values[i, j])
        parts.append(blend.take(i))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)


def test_one_window_changes_no_number():
    axis = windows(16, 16, 8, ramp=8)
    assert (axis.weights == 1).all() and Grid(axis, axis).count == 1


def test_noise_is_of_blocks():
    large, small = np.zeros((2, BLOCK + 8, 2 * BLOCK), np.float32), np.zeros((2, 8, 8), np.float32)
    fill_with_noise(large, 3)
    fill_with_noise(small, 3)
    np.testing.assert_array_equal(small, item_noise([3], (2, 8, 8))[0])  # as a synthesis has it
    np.testing.assert_array_equal(large[:, :BLOCK, BLOCK:], item_noise([block_seed(3, 0, 1)], (2, BLOCK, BLOCK))[0])
    assert len({block_seed(3, row, column) for row in range(9) for column in range(9)}) == 81
    assert abs(large.std() - 1) < 0.02
