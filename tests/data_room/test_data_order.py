"""The first so many samples: of a set in class order every class has its share, of any other they are the first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_advtrain import data
from jax_advtrain.data import first_positions
from jax_advtrain.data.order import lies_by_class
from jax_advtrain.evaluation.attack_dataset import first


def by_class(*counts):
    return np.repeat(np.arange(len(counts)), counts)


def test_of_a_random_order_they_are_the_first():
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    np.testing.assert_array_equal(first_positions(labels, 100), np.arange(100))
    np.testing.assert_array_equal(first_positions(np.arange(6) % 2, 4), np.arange(4))  # by turns is no class order
    np.testing.assert_array_equal(first_positions(np.zeros(5, int), 3), np.arange(3))


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.floats(0.05, 1))
def test_of_a_class_order_every_class_has_its_share(counts, share):
    labels = by_class(*counts)
    count = max(1, round(share * len(labels)))
    found = first_positions(labels, count)
    assert len(found) == count and (np.diff(found) > 0).all()
    if lies_by_class(labels):
        taken = np.bincount(labels[found], minlength=len(counts))
        exact = count * np.array(counts) / len(labels)
        assert (np.abs(taken - exact) < len(counts)).all() and (taken[exact >= len(counts)] > 0).all()
        for k in range(len(counts)):  # the first of each
            np.testing.assert_array_equal(found[labels[found] == k], np.flatnonzero(labels == k)[: taken[k]])


@given(st.lists(st.integers(6, 30), min_size=3, max_size=6), st.integers(0, 2))
def test_without_a_class_the_others_stay(counts, left_out):
    labels = by_class(*counts)
    found = first_positions(labels, len(labels) // 2)
    others = np.flatnonzero(labels != left_out)
    kept = found[labels[found] != left_out]
    np.testing.assert_array_equal(others[first_positions(labels[others], len(kept))], kept)


@pytest.mark.parametrize("count", [0, 7, 20])
def test_ends(count):
    assert len(first_positions(by_class(3, 4), count)) == min(count, 7)
    assert len(first_positions(np.zeros(0, int), count)) == 0


def test_a_file_in_class_order(tmp_path):
    """What the monitor, AutoAttack and num_train take of it has every class."""
    images = np.arange(60, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    labels = by_class(30, 20, 10)
    parts = {
        f"{part}_{what}": of for part in ("train", "test") for what, of in (("images", images), ("labels", labels))
    }
    np.savez(tmp_path / "sorted.npz", **parts)
    where = {"name": "sorted", "source": "npz", "path": str(tmp_path / "sorted.npz"), "validation_size": 0}
    whole = data.load(where).test
    np.testing.assert_array_equal(np.bincount(first(whole, 12).labels), [6, 4, 2])
    some = data.load({**where, "num_train": 30, "num_test": 6})
    np.testing.assert_array_equal(np.bincount(some.train.labels), [15, 10, 5])
    np.testing.assert_array_equal(some.test.labels, [0, 0, 0, 1, 1, 2])
