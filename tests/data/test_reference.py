from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cldm.data.reference import ReferenceAugmentation
from common.errors import InputError

H, W = 48, 64
RAMP = np.stack(np.broadcast_arrays(np.arange(W) * 3, np.arange(H)[:, None] * 5, 100), axis=-1).astype(np.uint8)
OFF = {"translate_int_max": 0.0, "rotate_frac_max": 0.0, "scale_std": 0.0, "translate_frac_std": 0.0}


def only(**parameters: float) -> ReferenceAugmentation:
    """One change that always happens, and no other."""
    return ReferenceAugmentation(p=1.0, **{**OFF, **parameters})


def scene() -> np.ndarray:
    """Smooth colors."""
    y, x = np.mgrid[:H, :W]
    waves = [127 + 100 * np.sin(x / 9 + y / 7), 127 + 100 * np.cos(x / 11), 127 + 100 * np.sin(y / 8)]
    return np.stack(waves, axis=-1).astype(np.uint8)


def test_without_probability_nothing_changes() -> None:
    augment = ReferenceAugmentation(p=0.0)
    assert all((augment(RAMP, seed) == RAMP).all() for seed in range(20))


def test_the_published_parameters_are_the_defaults() -> None:
    published = {"p": 0.12, "translate_int_max": 0.125, "rotate_frac_max": 0.1, "scale_std": 0.2}
    assert vars(ReferenceAugmentation()).keys() >= published.keys()
    assert all(
        (ReferenceAugmentation()(RAMP, seed) == ReferenceAugmentation(**published)(RAMP, seed)).all()
        for seed in range(50)
    )


def test_integer_translation_is_numpys_reflection() -> None:
    augment = only(translate_int_max=0.5)
    shifts = set()
    for seed in range(30):
        dx, dy = augment.draw(np.random.default_rng(seed), H, W).shift
        padded = np.pad(RAMP, ((H // 2, H // 2), (W // 2, W // 2), (0, 0)), mode="reflect")
        expected = padded[H // 2 - dy : H // 2 - dy + H, W // 2 - dx : W // 2 - dx + W]
        assert np.array_equal(augment(RAMP, seed), expected)
        assert abs(dx) <= W // 2 and abs(dy) <= H // 2
        shifts.add((dx, dy))
    assert len(shifts) == 30


def test_the_drawn_numbers_have_the_stated_distributions() -> None:
    augment = ReferenceAugmentation(p=1.0)
    drawn = [augment.draw(np.random.default_rng(seed), 512, 1024) for seed in range(4000)]
    log_scale = np.log2([change.scale for change in drawn])
    assert abs(log_scale.mean()) < 0.01 and abs(log_scale.std() - 0.2) < 0.01
    angle = np.array([change.angle for change in drawn]) / np.pi  # uniform in +- 0.1: std is 0.1 / sqrt(3)
    assert np.abs(angle).max() <= 0.1 and abs(angle.mean()) < 0.003 and abs(angle.std() - 0.1 / 3**0.5) < 0.003
    offset = np.array([change.offset for change in drawn]) / (1024, 512)
    assert np.allclose(offset.mean(0), 0, atol=0.01) and np.allclose(offset.std(0), 0.125, atol=0.01)
    shift = np.array([change.shift for change in drawn])
    assert np.abs(shift).max(0).tolist() == [128, 64] and np.allclose(shift.std(0) * 3**0.5, [128, 64], rtol=0.03)


def test_each_change_has_its_own_probability() -> None:
    augment = ReferenceAugmentation(p=0.3)
    drawn = [augment.draw(np.random.default_rng(seed), 512, 512) for seed in range(4000)]
    happens = np.array(
        [[c.shift != (0, 0), c.scale != 1.0, c.angle != 0.0, c.offset != (0.0, 0.0)] for c in drawn], dtype=float
    )
    assert np.allclose(happens.mean(0), 0.3, atol=0.03)
    assert np.abs(np.corrcoef(happens.T) - np.eye(4)).max() < 0.06  # one happens whether or not another does


def dot_at(image: np.ndarray) -> np.ndarray:
    """Center of mass (x, y) of the bright pixels."""
    weight = image[..., 0].astype(float)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize("parameter", ["rotate_frac_max", "scale_std", "translate_frac_std"])
def test_a_dot_goes_where_the_affine_map_sends_it(parameter: str) -> None:
    side, at = 129, np.array([84.0, 54.0])
    image = np.zeros((side, side, 3), dtype=np.uint8)
    image[53:56, 83:86] = 255
    center = (side - 1) / 2
    augment = only(**{parameter: 0.1})
    for seed in range(10):
        change = augment.draw(np.random.default_rng(seed), side, side)
        turn = np.array([[np.cos(change.angle), -np.sin(change.angle)], [np.sin(change.angle), np.cos(change.angle)]])
        expected = change.scale * turn @ (at - center) + center + change.offset
        assert np.allclose(dot_at(augment(image, seed)), expected, atol=0.1)


def test_all_parts_together_scale_then_turn_then_move() -> None:
    side, at = 129, np.array([74.0, 60.0])
    image = np.zeros((side, side, 3), dtype=np.uint8)
    image[59:62, 73:76] = 255
    augment = ReferenceAugmentation(p=1.0, translate_int_max=0.05, scale_std=0.1, translate_frac_std=0.05)
    for seed in range(10):
        change = augment.draw(np.random.default_rng(seed), side, side)
        turn = np.array([[np.cos(change.angle), -np.sin(change.angle)], [np.sin(change.angle), np.cos(change.angle)]])
        expected = change.scale * turn @ (at + change.shift - 64) + 64 + change.offset
        assert np.allclose(dot_at(augment(image, seed)), expected, atol=0.15)


def test_shrinking_averages_instead_of_aliasing() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    image = np.repeat(board[..., None], 3, axis=-1).astype(np.uint8)
    augment = only(scale_std=1.0)
    for seed in range(40):
        if augment.draw(np.random.default_rng(seed), 64, 64).scale < 0.5:
            assert augment(image, seed).std() < 20  # a plain look-up leaves about 127
            break
    else:
        pytest.fail("no seed shrinks to half")


def test_a_gray_picture_stays_what_it_is() -> None:
    gray = np.full((H, W, 3), 93, dtype=np.uint8)  # reflection brings in no other value, not even at the borders
    augment = ReferenceAugmentation(p=1.0, scale_std=0.5, translate_frac_std=0.5)
    assert all((augment(gray, seed) == 93).all() for seed in range(20))


def test_one_band_is_changed_as_each_of_three() -> None:
    for scaled in (only(scale_std=1.0), ReferenceAugmentation(p=1.0, color=0.5)):
        assert all(scaled(RAMP[..., :1], seed).shape == (H, W, 1) for seed in range(8))
    augment = only(scale_std=1.0, rotate_frac_max=0.1)
    for seed in range(8):
        one, three = augment(RAMP[..., :1], seed), augment(RAMP, seed)[..., :1]
        assert np.abs(one.astype(int) - three).max() <= 2  # OpenCV rounds them apart


def test_seed_alone_decides() -> None:
    augment = ReferenceAugmentation(p=0.7, color=0.5)
    image = scene()
    first = [augment(image, seed) for seed in range(40)]
    np.random.seed(7)  # noqa: NPY002 the global state must not matter
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda seed: ReferenceAugmentation(p=0.7, color=0.5)(image, seed), range(39, -1, -1)))
        shared = list(pool.map(lambda seed: augment(image, seed), range(40)))
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first, shared, strict=True))
    assert len({a.tobytes() for a in first}) == 40
    assert (image == scene()).all()  # the picture itself is left alone


def test_colors_change_on_demand_and_leave_the_geometry() -> None:
    image = np.zeros((H, W, 3), dtype=np.uint8)
    image[10:20, 30:50] = 120, 90, 60
    images = [ReferenceAugmentation(p=0.0, color=1.0)(image, seed) for seed in range(30)]
    inside = np.array([changed[15, 40] for changed in images])
    assert all((changed[10:20, 30:50] == changed[15, 40]).all() for changed in images)  # one color stays one color
    assert len(np.unique(inside, axis=0)) == 30 and inside.std(0).min() > 10
    weak = np.array([ReferenceAugmentation(p=0.0, color=0.1)(image, seed)[15, 40] for seed in range(30)])
    assert weak.std(0).max() < inside.std(0).min()


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"xflip": 1}, "unknown parameters xflip; known are p, translate_int_max"),
        ({"p": 1.1}, "p is 1.1"),
        ({"p": -0.1}, "p is -0.1"),
        ({"scale_std": "a"}, "scale_std is a"),
        ({"color": float("nan")}, "color is nan"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ReferenceAugmentation(**parameters)  # type: ignore[arg-type]
