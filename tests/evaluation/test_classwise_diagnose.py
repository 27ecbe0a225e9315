"""`diagnose` on models whose answers are known: a linear classifier of two pixels, and one with a class too many."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain import attacks
from jax_advtrain.data import Dataset
from jax_advtrain.evaluation import classwise
from jax_advtrain.evaluation.classwise import files

# Class 0 where the first pixel is larger, 1 where the second is; class 2 has no samples and never wins.
GAPS = {0: (0.05, 0.05, 0.3, 0.3), 1: (0.3, 0.3, 0.3, 0.3)}


def logits_fn(images):
    return jnp.stack([images[:, 0], images[:, 1], jnp.full(len(images), -9.0)], axis=-1) * 20


@pytest.fixture(scope="module")
def data() -> Dataset:
    pixels, labels = [], []
    for label, gaps in GAPS.items():
        for gap in gaps:
            high, low = 0.5 + gap / 2, 0.5 - gap / 2
            pixels.append((high, low) if label == 0 else (low, high))
            labels.append(label)
    images = np.array(pixels, np.float32)
    return Dataset(
        name="gaps",
        images=images,
        labels=np.array(labels, np.int32),
        ids=np.arange(len(labels), dtype=np.int64) + 100,
        class_names=("first", "second", "none"),
        split="test",
    )


@pytest.fixture(scope="module")
def found(data):
    # Within L-inf 0.1 exactly the gaps below 0.2 can be closed.
    return classwise.diagnose(
        logits_fn,
        data,
        ["noise", "pgd:num_steps=10"],
        norm="linf",
        epsilon=0.1,
        temperatures=(0.5,),
        temperature_steps=5,
        kernel=np.eye(3),
        resamples=50,
    )


def test_what_is_found_is_what_is_there(found, data, tmp_path):
    tables = {one["attack"]: one for one in found.facts["accuracy"]}
    assert list(tables) == ["clean", "uniform-noise", "pgd-10-ce", "worst-of"]
    for name in ("pgd-10-ce", "worst-of"):
        assert [row["correct"] for row in tables[name]["per_class"]] == [2, 4, 0], name
    assert [row["accuracy"] for row in tables["clean"]["per_class"]] == [1, 1, None]
    assert tables["worst-of"]["spread"]["worst_class"] == 0
    assert found.facts["gap"] == [0.5, 0.0, None]
    worst = next(one for one in found.facts["flow"] if one["attack"] == "worst-of")
    assert [(e["source"], e["target"], e["count"]) for e in worst["edges"]] == [(0, 1, 2)]
    assert worst["symmetry"] == 0 and worst["grouped"] is None
    sweep = found.facts["temperature"]
    assert sweep["temperatures"] == [1.0, 0.5] and sweep["accuracy"][0][:2] == [0.5, 1.0]
    assert sum(map(sum, sweep["winners"])) == 2
    assert found.arrays["id"].tolist() == data.ids.tolist()
    assert (found.arrays["prediction/worst-of"] == [1, 1, 0, 0, 1, 1, 1, 1]).all()
    distribution = found.arrays["distribution/pgd-10-ce"]
    assert np.allclose(distribution[:2].sum(axis=1), 1) and np.isnan(distribution[2]).all()
    files.write(tmp_path, found.facts, found.arrays)
    assert "no sample, so nothing is known of: none" in found.facts["verdict"]


def test_batch_size_and_interruption_change_nothing(found, data, tmp_path):
    again = classwise.diagnose(
        logits_fn,
        data,
        {"uniform-noise": attacks.noise(norm="linf", epsilon=0.0), "pgd-10-ce": attacks.pgd(norm="linf", epsilon=0.0,
                                                                                             num_steps=10)},
        norm="linf",
        epsilon=0.1,
        batch_size=3,
        state_folder=tmp_path,
        resamples=50,
    )  # fmt: skip
    for name, array in again.arrays.items():
        assert np.allclose(array, found.arrays[name], atol=1e-6, equal_nan=True), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pgd-10-ce-0.npz", "uniform-noise-0.npz"]


def test_a_model_that_gives_nan_is_right_about_nothing(data, tmp_path):
    """Also of class 0, which an arg max of NaN would give."""

    def broken(images):
        return logits_fn(images).at[:, 1].set(jnp.nan)

    found = classwise.diagnose(broken, data, ["pgd:num_steps=2"], norm="linf", epsilon=0.1, resamples=20)
    tables = {one["attack"]: one for one in found.facts["accuracy"]}
    for name in ("clean", "pgd-2-ce", "worst-of"):
        assert [row["correct"] for row in tables[name]["per_class"]] == [0, 0, 0], name
    assert (found.arrays["clean_prediction"] == -1).all()
    files.write(tmp_path, found.facts, found.arrays)
    assert files.read(tmp_path)["gap"] == [0, 0, None]


def test_a_model_with_more_outputs_than_classes(data):
    wide = classwise.diagnose(
        lambda images: jnp.concatenate([logits_fn(images), images[:, :1] * 19 + 0.2], axis=-1),
        data,
        ["fgsm"],
        epsilon=0.1,
        resamples=20,
    )
    assert wide.facts["class_names"] == ["first", "second", "none", "output 3"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (dict(attacks=[]), "needs an attack"),
        (dict(attacks=["pgdd"]), "did you mean 'pgd'"),
        (dict(norm="l7"), "l7"),
        (dict(epsilon=-0.1), "epsilon"),
        (dict(temperatures=(0.0,)), "temperatures"),
    ],
)
def test_bad_input(data, asked, expected):
    given = {"attacks": ["fgsm"], "epsilon": 0.1, **asked}
    with pytest.raises(ValueError, match=expected):
        classwise.diagnose(logits_fn, data, given.pop("attacks"), **given)
