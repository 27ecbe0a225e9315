"""Classes left out or chosen: samples, ids, labels, names; what cannot be chosen."""

import numpy as np
import pytest

from jax_advtrain import data
from jax_advtrain.data import fields, splits
from jax_advtrain.data.classes import select
from jax_advtrain.data.source import Source, records_in_memory

NAMES = ("ant", "bee", "cat", "dog", "eel")


def source(names=NAMES, *, count=100, test=50, validation=None) -> Source:
    """Sample k has label k % classes and the grey level k."""

    def records(split, number):
        levels = np.arange(number).astype(np.uint8).reshape(number, 1, 1, 1)
        return records_in_memory(split, levels, np.arange(number) % len(names))

    sizes = (("train", count), ("validation", validation), ("test", test))
    return Source("toy", "1", names, *(number and records(split, number) for split, number in sizes))


def choose(where: Source, **config):
    full = fields.complete({"name": "toy", **config})
    narrowed, selection = select(where, full)
    return splits.choose(narrowed, full), selection


def npz(tmp_path, **config) -> data.Splits:
    images = np.arange(200, dtype=np.uint8).repeat(4).reshape(200, 2, 2)
    labels = np.arange(200) % 5
    np.savez(
        tmp_path / "toy.npz", images=images[:150], labels=labels[:150], test_images=images[150:],
        test_labels=labels[150:], class_names=np.array(NAMES),
    )  # fmt: skip
    return data.load({"name": "toy", "path": str(tmp_path / "toy.npz"), **config})


@pytest.mark.parametrize(
    ("how", "labels", "names"),
    [("relabel", {0: 0, 2: 1, 4: 2}, ("ant", "cat", "eel")), ("keep", {0: 0, 2: 2, 4: 4}, NAMES)],
)
def test_left_out_of_all_splits(tmp_path, how, labels, names):
    whole = npz(tmp_path)
    without = npz(tmp_path, exclude_classes=("bee", 3), exclude_how=how)
    assert len(without.train) + len(without.validation) == 90 and len(without.test) == 30
    for part in without:
        source_ids = part.ids + (150 if part.split == "test" else 0)
        assert set(source_ids % 5) == {0, 2, 4}
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], source_ids)  # ids are those of the source
        np.testing.assert_array_equal(part.labels, [labels[id_ % 5] for id_ in source_ids])
        assert part.class_names == names and part.kept_classes == (0, 2, 4)
        assert part.fingerprint()["kept_classes"] == [0, 2, 4] and part.fingerprint()["num_classes"] == len(names)
    assert whole.train.kept_classes is None and "kept_classes" not in whole.train.fingerprint()


def test_both_ways_choose_the_same_samples(tmp_path):
    chosen = [npz(tmp_path, classes="ant, eel", exclude_how=how, validation_size=9) for how in ("relabel", "keep")]
    for a, b in zip(*chosen, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        assert a.fingerprint() != b.fingerprint()
    assert chosen[0].train.labels.max() == 1 and chosen[1].train.labels.max() == 4


@pytest.mark.parametrize(
    "config",
    [
        {"exclude_classes": ("bee", "dog")},
        {"exclude_classes": "bee,dog"},
        {"exclude_classes": (1, 3)},
        {"exclude_classes": "3, 1, 1"},
        {"classes": ("eel", "ant", 2)},
        {"classes": "4,0,cat"},
    ],
)
def test_ways_to_say_it(config):
    choice, selection = choose(source(), **config)
    assert selection.kept == (0, 2, 4) and selection.class_names == ("ant", "cat", "eel")
    assert set(choice.test.ids % 5) == {0, 2, 4}


def test_sizes_and_lists_count_what_is_left():
    left_out = {"exclude_classes": ("bee",)}
    choice, _ = choose(source(), num_train=7, num_test=3, validation_size=0, **left_out)
    assert choice.train.ids.tolist() == [0, 2, 3, 4, 5, 7, 8] and choice.test.ids.tolist() == [0, 2, 3]
    choice, _ = choose(source(), train_ids=[11, 6, 99, 4, 7], num_train=2, validation_size=0, **left_out)
    assert choice.train.ids.tolist() == [99, 4]
    choice, _ = choose(source(), validation_size=0.25, **left_out)
    assert len(choice.validation.ids) == 20 and np.bincount(choice.validation.ids % 5).tolist() == [5, 0, 5, 5, 5]
    choice, _ = choose(source(validation=30), **left_out)
    assert len(choice.validation.ids) == 24
    choice, _ = choose(source(test=None), test_size=0.5, validation_size=0, **left_out)
    assert sorted([*choice.train.ids, *choice.test.ids]) == [k for k in range(100) if k % 5 != 1]


def test_names_that_are_numbers():
    """Where the classes are called 1, 2, 3, these names are meant, never the positions."""
    _, selection = choose(source(("1", "2", "3")), exclude_classes=(1,))
    assert selection.kept == (1, 2)
    with pytest.raises(ValueError, match=r"no class '0': did you mean"):
        choose(source(("1", "2", "3")), exclude_classes=0)
    _, selection = choose(source(("red, round", "red", "blue")), exclude_classes="red, round")
    assert selection.kept == (1, 2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"exclude_classes": "catt"}, "data.exclude_classes: 'toy' has no class 'catt': did you mean 'cat'?"),
        ({"classes": ("ant", "Dog")}, "data.classes: 'toy' has no class 'Dog': did you mean 'dog'?"),
        ({"exclude_classes": (5,)}, "has no class '5': did you mean"),
        ({"exclude_classes": (-1,)}, "or a number 0..4"),
        ({"classes": "cat"}, "data.classes=('cat',) leaves fewer than 2 of the 5 classes of 'toy': cat"),
        ({"exclude_classes": range(5)}, "leaves fewer than 2 of the 5 classes of 'toy': none"),
        ({"exclude_classes": 1.5}, "data.exclude_classes must hold class names or numbers, got 1.5"),
        ({"exclude_classes": (True,)}, "data.exclude_classes must hold class names or numbers, got (True,)"),
        (
            {"exclude_classes": 1, "classes": (2, 3)},
            "data.classes (those to keep) and data.exclude_classes cannot both",
        ),
        ({"exclude_classes": 1, "exclude_how": "drop"}, "data.exclude_how must be 'relabel' or 'keep', got 'drop'"),
        (
            {"exclude_classes": 1, "train_ids": [1, 6]},
            "data.train_ids names 2 samples, all of classes that are left out",
        ),
        ({"exclude_classes": 1, "test_ids": [1]}, "data.test_ids names 1 samples, all of classes that are left out"),
    ],
)
def test_bad_choices(config, expected):
    with pytest.raises(ValueError) as caught:
        choose(source(), **config)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_chosen_is_everything():
    for config in ({}, {"classes": ()}, {"exclude_classes": ""}, {"exclude_classes": None}):
        choice, selection = choose(source(), validation_size=0, **config)
        assert selection.kept is None and len(choice.train.ids) == 100


def test_labels_outside_the_classes_are_still_found(tmp_path):
    arrays = {"images": np.zeros((6, 2, 2), np.uint8), "labels": np.array([0, 1, 2, 3, -1, 3])}
    np.savez(tmp_path / "bad.npz", **arrays, class_names=np.array(["a", "b", "c"]))
    config = {"name": "bad", "path": str(tmp_path / "bad.npz"), "test_ids": [0, 1], "validation_size": 0}
    with pytest.raises(ValueError, match=r"3 labels are outside the 2 classes 0..1 \(first: label 3 of id 3\)"):
        data.load({**config, "exclude_classes": "b"})


def test_tfds_digits_and_moons(digits_dir):
    digits = {"name": "digits", "data_dir": str(digits_dir)}
    whole, two = data.load(digits), data.load({**digits, "classes": (3, 8)})
    keep = np.isin(whole.test.labels, (3, 8))
    np.testing.assert_array_equal(two.test.images, whole.test.images[keep])
    np.testing.assert_array_equal(two.test.ids, whole.test.ids[keep])
    np.testing.assert_array_equal(two.test.labels, whole.test.labels[keep] == 8)
    assert two.test.class_names == ("3", "8")
    with pytest.raises(ValueError, match="leaves fewer than 2 of the 2 classes of 'moons': lower"):
        data.load({"name": "moons", "exclude_classes": "upper"})
