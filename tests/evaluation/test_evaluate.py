"""Evaluating anybody's model: every sample counted once, independent of batches and order, compiled once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_advtrain import attacks
from jax_advtrain.data import Dataset
from jax_advtrain.devices import make_mesh
from jax_advtrain.evaluation import attack_dataset as one_attack
from jax_advtrain.evaluation import results
from jax_advtrain.evaluation.attack_dataset import attack_dataset
from jax_advtrain.evaluation.evaluate import evaluate

CLASSES, SIDE, COUNT = 3, 4, 37
MEMBERS = ["pgd:num_steps=4", "pgd:num_steps=4:loss=lm:restarts=2", "noise"]
EPSILONS = {"linf": [0.02, 0.05], "l2": [0.2]}


def weights(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(SIDE * SIDE, CLASSES)), jnp.float32)


def apply(weights, images):
    return (images.reshape(len(images), -1) - 0.5) @ weights


def linear(seed: int) -> jax.tree_util.Partial:
    return jax.tree_util.Partial(apply, weights(seed))


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Images that the linear model of seed 0 gets right, but for every tenth."""
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (COUNT, SIDE, SIDE, 1), np.uint8)
    labels = np.array(jnp.argmax(linear(0)(jnp.asarray(images / 255, jnp.float32)), axis=-1), np.int32)
    labels[::10] = (labels[::10] + 1) % CLASSES
    ids = np.sort(random.choice(1000, COUNT, replace=False)).astype(np.int64)
    return Dataset("toy", images, labels, ids, ("a", "b", "c"), split="test")


@pytest.fixture(scope="module")
def found(data):
    return evaluate(linear(0), data, MEMBERS, EPSILONS, batch_size=16)


def shuffled(data: Dataset, order: np.ndarray) -> Dataset:
    return dataclasses.replace(data, images=data.images[order], labels=data.labels[order], ids=data.ids[order])


def counted(found) -> list:
    """All that an evaluation found, but for how long it took."""
    return [dataclasses.replace(record, seconds=0) for record in found.records]


def test_records(found, data):
    labels = ["pgd-4-ce", "pgd-4-lm-x2", "uniform-noise"]
    radii = [(norm, epsilon) for norm in EPSILONS for epsilon in EPSILONS[norm]]
    told = [(record.attack, record.norm, record.epsilon) for record in found.records]
    assert told == [
        ("clean", None, 0.0),
        *((label, *radius) for radius in radii for label in labels),
        *(("worst-of", *radius) for radius in radii),
    ]
    assert {record.n for record in found.records} == {COUNT}
    assert found.records[0].correct == COUNT - len(range(0, COUNT, 10))
    for record in found.records:
        assert [count.n for count in record.per_class] == np.bincount(data.labels, minlength=CLASSES).tolist()
    assert (found.per_sample["id"] == data.ids).all() and (found.per_sample["label"] == data.labels).all()
    passes = {record.attack: record.passes for record in found.records}
    assert (passes["clean"], passes["pgd-4-ce"], passes["pgd-4-lm-x2"], passes["uniform-noise"]) == (0.5, 4.5, 9, 0.5)


def test_worst_case_is_the_worst_of_each_sample(found, data):
    for norm, epsilon in (("linf", 0.02), ("linf", 0.05), ("l2", 0.2)):
        at = {record.attack: record for record in found.records if (record.norm, record.epsilon) == (norm, epsilon)}
        worst = at.pop("worst-of")
        assert worst.correct <= min(record.correct for record in at.values())
        winner = found.per_sample[results.sample_key("winner", norm, epsilon)]
        prediction = found.per_sample[results.sample_key("prediction", norm, epsilon)]
        distance = found.per_sample[results.sample_key("distance", norm, epsilon)]
        assert (winner == -1).sum() == worst.correct == (prediction == data.labels).sum()
        assert (distance[winner > 0] <= epsilon * 1.001).all() and np.isinf(distance[winner == -1]).all()


def test_closed_form_of_a_linear_model(data):
    """Of two classes, L-inf PGD on a linear model ends in the corner: right iff margin > epsilon |w|_1."""
    binary = weights(2)[:, :2]
    images = jnp.asarray(np.random.default_rng(3).uniform(0.3, 0.7, (COUNT, SIDE, SIDE, 1)), jnp.float32)
    model = jax.tree_util.Partial(apply, binary)
    labels = np.asarray(jnp.argmax(model(images), axis=-1), np.int32)
    points = Dataset("toy", np.asarray(images), labels, np.arange(COUNT), ("a", "b"))
    lead = np.asarray(model(images)[:, 0] - model(images)[:, 1])
    margin = np.abs(lead) / np.abs(np.asarray(binary[:, 0] - binary[:, 1])).sum()
    for epsilon in np.quantile(margin, (0.25, 0.5, 0.75)):
        result = evaluate(model, points, ["pgd:loss=lm", "fgsm"], {"linf": [float(epsilon)]})
        right = (margin > epsilon).sum()
        assert all(abs(record.correct - right) <= 1 for record in result.records[1:])


def assert_same(found, wanted, order=slice(None)):
    assert counted(found) == counted(wanted)
    for name, values in wanted.per_sample.items():
        values = values if name == "attack_names" else values[order]
        if values.dtype.kind == "f":
            np.testing.assert_allclose(found.per_sample[name], values, rtol=1e-5)
        else:
            np.testing.assert_array_equal(found.per_sample[name], values)


def test_batch_size_changes_nothing(data):
    one, other = (
        evaluate(linear(0), data, MEMBERS[1:], {"linf": [0.05]}, batch_size=batch_size) for batch_size in (16, 5)
    )
    assert_same(other, one)


def test_order_of_samples_changes_nothing(found, data):
    order = np.random.default_rng(4).permutation(COUNT)
    assert_same(evaluate(linear(0), shuffled(data, order), MEMBERS, EPSILONS, batch_size=16), found, order)


def test_another_seed_draws_other_starts(data):
    noise = [
        attack_dataset(
            attacks.noise(epsilon=0.0), linear(0), data, epsilon=0.05, seed=seed, batch_size=16, keep_images=True
        ).images
        for seed in (0, 0, 1)
    ]
    assert noise[0] is not None and (noise[0] == noise[1]).all() and not np.isclose(noise[0], noise[2]).all()


# --- Anybody's logits_fn ---


class Module(nnx.Module):
    def __init__(self, kernel):
        self.kernel = nnx.Param(kernel)

    def __call__(self, images):
        return apply(self.kernel[...], images)


class Unhashable:
    __hash__ = None  # pyright: ignore

    def __call__(self, images):
        return apply(weights(0), images)

    def method(self, images):
        return self(images)


@pytest.mark.parametrize(
    "model",
    [
        lambda images: apply(weights(0), images),
        jax.jit(lambda images: apply(weights(0), images)),
        Module(weights(0)),
        Unhashable(),
        Unhashable().method,
    ],
    ids=["function", "jitted", "nnx", "unhashable", "method"],
)
def test_any_callable_is_a_model(found, data, model):
    again = evaluate(model, data, MEMBERS[:1], {"linf": [0.05]}, batch_size=16)
    wanted = {(r.attack, r.norm, r.epsilon): r.correct for r in found.records}
    for record in again.records[:-1]:
        assert record.correct == wanted[record.attack, record.norm, record.epsilon]


def test_one_compilation_for_all_radii_and_checkpoints(data):
    one_attack._attack_batch.clear_cache()
    epsilons = {"linf": [0.01, 0.02, 0.03, 0.04]}
    evaluate(linear(0), data, ["pgd:num_steps=3"], epsilons, batch_size=16)
    compiled = one_attack._attack_batch._cache_size()
    assert compiled == 2  # clean, and PGD
    evaluate(linear(5), data, ["pgd:num_steps=3"], {"linf": [0.07]}, batch_size=16, seed=3)
    evaluate(Module(weights(0)), data, ["pgd:num_steps=3"], {"linf": [0.07]}, batch_size=16)
    assert one_attack._attack_batch._cache_size() == compiled + 2  # another kind of model
    evaluate(Module(weights(5)), data, ["pgd:num_steps=3"], {"linf": [0.08]}, batch_size=16)
    assert one_attack._attack_batch._cache_size() == compiled + 2


def test_the_active_set_finds_the_same_and_says_what_it_ran(data, tmp_path):
    members, epsilons = ["pgd:num_steps=4"], {"linf": [0.05]}
    whole = evaluate(linear(0), data, members, epsilons, batch_size=16).records
    settings = dict(batch_size=16, active_set=True, state_folder=tmp_path)
    found = evaluate(linear(0), data, members, epsilons, **settings)
    assert [r.correct for r in found.records[:1]] == [r.correct for r in whole[:1]]
    # What any iterate fools counts, and what is wrong already.
    assert found.records[1].correct == found.records[2].correct <= whole[2].correct
    assert 0 < found.records[1].passes < whole[1].passes == 4.5
    shares = []
    again = evaluate(linear(0), data, members, epsilons, **settings, progress=lambda what, share: shares.append(share))
    assert counted(again) == counted(found) and shares == [0.5, 1]  # all of it read from the state files


def test_a_plain_function_is_compiled_once_for_all_radii(data):
    one_attack._attack_batch.clear_cache()
    model = Unhashable()
    evaluate(model, data, ["pgd:num_steps=3"], {"linf": [0.01, 0.02, 0.03]}, batch_size=16)
    assert one_attack._attack_batch._cache_size() == 2


def test_one_logit(data):
    vector = weights(0)[:, 1] - weights(0)[:, 0]
    labels = (data.labels == 1).astype(np.int32)
    binary = dataclasses.replace(data, labels=labels, class_names=("no", "yes"))
    result = evaluate(lambda images: apply(vector, images), binary, ["pgd", "fgsm:loss=lm"], {"linf": [0.05]})
    # The same as with two logits, of which the first is always 0.
    two = jnp.stack([jnp.zeros_like(vector), vector], axis=1)
    wanted = evaluate(lambda images: apply(two, images), binary, ["pgd", "fgsm:loss=lm"], {"linf": [0.05]})
    assert [record.attack for record in result.records] == ["clean", "pgd-20-bce", "fgsm-lmb", "worst-of"]
    for one, other in zip(result.records, wanted.records, strict=True):
        assert abs(one.correct - other.correct) <= (0 if one.attack == "clean" else 1)


# --- Warnings ---


def test_masked_gradients_are_warned_of(data, tmp_path):
    """Logits so large that float32's cross entropy is flat: PGD on it finds nothing, on the logit margin it does."""
    model = jax.tree_util.Partial(apply, 1e5 * weights(0))
    result = evaluate(model, data, ["pgd", "pgd:loss=lm"], {"linf": [0.05]}, batch_size=16)
    results.write_results(
        tmp_path, model={}, data=data.fingerprint(), records=result.records, per_sample=result.per_sample
    )
    (warning,) = results.read_results(tmp_path)["warnings"]
    assert "gradient masking is the first suspicion" in warning and "pgd-20-ce" in warning and "pgd-20-lm" in warning
    zero, nonfinite = result.bad_gradients["pgd-20-ce linf 0.05"]
    assert zero > COUNT / 2 and nonfinite == 0
    assert "pgd-20-lm linf 0.05" not in result.bad_gradients
    honest = evaluate(linear(0), data, ["pgd", "pgd:loss=lm"], {"linf": [0.05]}, batch_size=16)
    assert results.masking_warnings(honest.records) == []


def test_gradients_that_are_not_finite_are_counted(data):
    def model(images):
        logits = apply(weights(0), images)
        return logits + jnp.where(jnp.arange(CLASSES) == 0, jnp.sqrt(jnp.sum(images * 0)), 0)  # derivative 0 * inf

    result = evaluate(model, data, ["pgd:num_steps=2"], {"l2": [0.1]})
    assert result.bad_gradients == {"pgd-2-ce l2 0.1": (0, COUNT)}


# --- What is refused ---


@pytest.mark.parametrize(
    ("model", "members", "epsilons", "expected"),
    [
        (lambda images: apply(weights(0)[:, :2], images), [], {}, "the model gives 2 logits; 'toy' has 3 classes"),
        (lambda images: apply(weights(0)[:, 0], images), [], {}, "the model gives one logit a sample; 'toy' has 3"),
        (lambda images: images, [], {}, "the model gives (2, 4, 4, 1) for 2 samples"),
        (lambda images: jnp.sum(images), [], {}, "the model gives () for 2 samples"),
        (linear(0), ["pdg"], {}, "members: 'pdg': attack 'pdg' is not known (did you mean 'pgd'?)"),
        (linear(0), ["pgd", "pgd"], {}, "holds pgd-20-ce twice"),
        (linear(0), ["pgd"], {"l3": [1.0]}, "norm is 'l3'"),
        (linear(0), ["pgd"], {"l2": [1.0, -1.0]}, "a radius of l2 ranges over [-1, 1]"),
        (linear(0), ["pgd"], {"l2": [float("nan")]}, "a radius of l2"),
    ],
)
def test_refused_before_any_work(data, model, members, epsilons, expected):
    def no_progress(what, share):
        raise AssertionError("work was begun")

    with pytest.raises(ValueError) as caught:
        evaluate(model, data, members, epsilons, progress=no_progress)
    assert expected in str(caught.value)


def test_no_samples(data):
    nobody = dataclasses.replace(data, images=data.images[:0], labels=data.labels[:0], ids=data.ids[:0])
    with pytest.raises(ValueError, match="'toy', split 'test' has no samples to attack"):
        evaluate(linear(0), nobody, ["pgd"], EPSILONS)
    with pytest.raises(ValueError, match="has no samples"):
        attack_dataset(None, linear(0), nobody, make_mesh())


def test_progress_rises_to_one(data):
    shares = []
    evaluate(
        linear(0), data, ["fgsm"], {"linf": [0.1]}, batch_size=16, progress=lambda what, share: shares.append(share)
    )
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 6
