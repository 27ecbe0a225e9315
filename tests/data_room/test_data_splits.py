"""Which records train, validate and test: stratified carving, id lists, and who comes from where."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_advtrain.data import fields, splits
from jax_advtrain.data.permutation import VALIDATION
from jax_advtrain.data.source import Source, records_in_memory


def records(labels, split="train"):
    return records_in_memory(split, np.zeros((len(labels), 1, 1, 1), np.uint8), np.asarray(labels))


def source(train=100, validation=None, test=50) -> Source:
    parts = [count and records(np.arange(count) % 5, name) for count, name in
             ((train, "train"), (validation, "validation"), (test, "test"))]  # fmt: skip
    return Source("toy", "1", tuple("abcde"), *parts)


def choose(where: Source, **config) -> splits.Choice:
    return splits.choose(where, fields.complete({"name": "toy", **config}))


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_carving_is_stratified_and_loses_nothing(counts, share, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    pool = np.random.default_rng(seed).permutation(len(labels))
    size = round(share * len(labels))
    taken, left = splits.carve(records(labels), pool, size, seed, VALIDATION)
    assert len(taken) == size
    assert sorted(np.concatenate([taken, left])) == sorted(pool)
    for part in (taken, left):  # the pool's order is kept
        np.testing.assert_array_equal(part, pool[np.isin(pool, part)])
    for label, count in enumerate(counts):
        assert abs(np.sum(labels[taken] == label) - size * count / len(labels)) < 1
    again, _ = splits.carve(records(labels), pool, size, seed, VALIDATION)
    np.testing.assert_array_equal(taken, again)


def test_carving_depends_on_the_seed():
    taken = [splits.carve(records(np.zeros(200)), np.arange(200), 20, seed, VALIDATION)[0] for seed in range(5)]
    assert len({tuple(ids) for ids in taken}) == 5
    # Over many seeds every sample is taken about equally often: 20 times expected, deviation 4.2.
    many = [splits.carve(records(np.zeros(200)), np.arange(200), 20, seed, VALIDATION)[0] for seed in range(200)]
    frequency = np.bincount(np.concatenate(many), minlength=200)
    assert frequency.min() > 3 and frequency.max() < 45


def test_carved_from_train_by_default():
    choice = choose(source())
    assert [len(part.ids) for part in choice] == [90, 10, 50]
    assert sorted([*choice.train.ids, *choice.validation.ids]) == list(range(100))
    assert choice.validation.records.split == "train"
    assert [len(part.ids) for part in choose(source(), validation_size=30)] == [70, 30, 50]
    assert [len(part.ids) for part in choose(source(), validation_size=0.5)] == [50, 50, 50]
    assert [len(part.ids) for part in choose(source(), validation_size=0)] == [100, 0, 50]


def test_own_validation_split_is_used_whole():
    choice = choose(source(validation=40))
    assert choice.validation.records.split == "validation" and len(choice.validation.ids) == 40
    assert len(choice.train.ids) == 100
    assert len(choose(source(validation=40), validation_size=10).validation.ids) == 10
    assert len(choose(source(validation=40), train_ids=[3, 4]).validation.ids) == 40
    carved = choose(source(validation=40), validation_from="train")
    assert [len(part.ids) for part in carved] == [90, 10, 50]


@pytest.mark.parametrize("config", [{"train_ids": [9, 2, 5]}, {"train_ids": [9, 2, 5, 7], "num_train": 3}])
def test_ids_keep_their_order_and_the_rest_validates(config):
    choice = choose(source(), validation_size=20, **config)
    assert choice.train.ids.tolist() == [9, 2, 5]
    assert len(choice.validation.ids) == 20
    assert not np.isin(choice.validation.ids, [9, 2, 5]).any()
    assert len(choose(source(), **config).validation.ids) == 10  # a tenth of 97


def test_validation_from_train_with_ids():
    choice = choose(source(), train_ids=list(range(50)), validation_from="train", validation_size=10)
    assert len(choice.train.ids) == 40
    assert sorted([*choice.train.ids, *choice.validation.ids]) == list(range(50))
    assert len(choose(source(), train_ids=list(range(100))[::-1]).validation.ids) == 10  # no rest: from train


def test_first_k():
    choice = choose(source(), num_train=7, num_test=4, validation_size=5)
    assert choice.train.ids.tolist() == list(range(7)) and choice.test.ids.tolist() == list(range(4))
    assert choice.validation.ids.min() >= 7
    assert choose(source(), test_ids=[30, 2, 9], num_test=2).test.ids.tolist() == [30, 2]


def test_test_carved_where_there_is_none():
    choice = choose(source(test=None), test_size=0.2, validation_size=0.1)
    assert [len(part.ids) for part in choice] == [72, 8, 20]
    assert sorted(np.concatenate([part.ids for part in choice])) == list(range(100))
    assert choice.test.records.split == "train"
    listed = choose(source(test=None), test_ids=[1, 2], validation_size=0)
    assert listed.test.ids.tolist() == [1, 2] and len(listed.train.ids) == 98
    # Test stays what it is when something else about training changes.
    again = choose(source(test=None), test_size=0.2, num_train=10)
    np.testing.assert_array_equal(again.test.ids, choice.test.ids)
    assert not np.isin(again.validation.ids, choice.test.ids).any()


@pytest.mark.parametrize("suffix", [".txt", ".npy", ".npz", ".npz:b"])
def test_id_files(tmp_path, suffix):
    ids = np.array([5, 0, 99])
    path = tmp_path / ("ids" + suffix.partition(":")[0])
    if suffix == ".txt":
        path.write_text("5\n0\n99\n")
    elif suffix == ".npy":
        np.save(path, ids)
    else:
        np.savez(path, **({"b": ids, "c": ids[:1]} if ":" in suffix else {"only": ids}))
    choice = choose(source(), train_ids=str(tmp_path / ("ids" + suffix)))
    assert choice.train.ids.tolist() == [5, 0, 99] and choice.train.ids.dtype == np.int64
