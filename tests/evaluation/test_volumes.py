"""Dice and 95% Hausdorff distance of whole cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_advtrain.evaluation import volumes


def masks(seed, shape, classes=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, shape), rng.integers(0, classes, shape)


def box(shape, start, size):
    found = np.zeros(shape, int)
    found[tuple(slice(at, at + n) for at, n in zip(start, size, strict=True))] = 1
    return found


def test_slices_come_together_again():
    rng = np.random.default_rng(0)
    cases = {7: masks(1, (4, 3, 5)), 2: masks(2, (6, 3, 5))}
    ids = {7: np.arange(10, 14), 2: np.arange(20, 26)}
    order = rng.permutation(10)
    rows = [np.concatenate([cases[case][part] for case in cases])[order] for part in (0, 1)]
    numbers = np.concatenate([ids[case] for case in cases])[order]
    groups = np.repeat([7, 2], [4, 6])[order]
    found = list(volumes.by_case(*rows, numbers, groups))
    assert [case for case, _, _ in found] == [2, 7]
    for case, prediction, truth in found:
        np.testing.assert_array_equal(prediction, cases[case][0])
        np.testing.assert_array_equal(truth, cases[case][1])
    with pytest.raises(ValueError, match="they must be those of the same samples"):
        list(volumes.by_case(rows[0], rows[1][:, :2], numbers, groups))


def test_dice_in_closed_form():
    truth, prediction = np.array([0, 1, 1, 2, 2, 2]), np.array([1, 1, 0, 2, 2, 0])
    np.testing.assert_allclose(volumes.dice(prediction, truth, 4), [2 * 1 / 4, 2 * 2 / 5, np.nan])
    np.testing.assert_allclose(volumes.dice(truth, truth, 3), [1, 1])
    assert volumes.dice(np.zeros(6, int), truth, 2) == 0


@pytest.mark.parametrize("spacing", [None, (1.0, 2.0, 0.5)])
def test_a_box_that_is_moved(spacing):
    """Every face moves by the shift, and most voxels of the two faces across it are that far from the other box."""
    truth, prediction = box((12, 12, 12), (2, 2, 2), (6, 6, 1)), box((12, 12, 12), (2, 2, 5), (6, 6, 1))
    expected = 3 * (spacing or (1, 1, 1))[2]
    np.testing.assert_allclose(volumes.hausdorff95(prediction, truth, 2, spacing), [expected])
    np.testing.assert_allclose(volumes.hausdorff95(truth, truth, 2, spacing), [0])


def test_a_few_far_voxels_do_not_count():
    truth = box((20, 20), (4, 4), (8, 8))
    stray = truth.copy()
    stray[19, 19] = 1  # one of 29 surface voxels
    np.testing.assert_allclose(volumes.hausdorff95(stray, truth, 2), [0])
    assert np.isnan(volumes.hausdorff95(np.zeros((20, 20), int), truth, 2)).all()


@given(st.integers(0, 2**31), st.sampled_from([(4, 5), (3, 4, 3)]))
@settings(max_examples=20, deadline=None)
def test_it_is_what_all_pairs_give(seed, shape):
    prediction, truth = masks(seed, shape)
    spacing = np.random.default_rng(seed).uniform(0.5, 2, len(shape))

    def surface(mask):
        padded = np.pad(mask, 1)
        inside = padded.copy()
        for axis in range(mask.ndim):
            for step in (-1, 1):
                inside &= np.roll(padded, step, axis)
        return np.argwhere(mask & ~inside[(slice(1, -1),) * mask.ndim]) * spacing

    def expected(k):
        one, other = surface(prediction == k), surface(truth == k)
        if not len(one) or not len(other):
            return np.nan
        pairs = np.linalg.norm(one[:, None] - other[None], axis=-1)
        return max(np.percentile(pairs.min(1), 95), np.percentile(pairs.min(0), 95))

    found = volumes.hausdorff95(prediction, truth, 3, spacing)
    np.testing.assert_allclose(found, [expected(1), expected(2)], rtol=1e-9)
    np.testing.assert_allclose(found, volumes.hausdorff95(truth, prediction, 3, spacing))
    scores = volumes.dice(prediction, truth, 3)
    np.testing.assert_allclose(scores, volumes.dice(truth, prediction, 3))
