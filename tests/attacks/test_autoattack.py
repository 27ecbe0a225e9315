"""AutoAttack: what runs on how many classes, that it says so, and what it finds."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_compositions import by_hand, refused
from toy_problems import compiled, keys, lengths, linear, pixels, run, same_bits, smooth_model, two_classes

from jax_advtrain import attacks
from jax_advtrain.attacks.autoattack import autoattack
from jax_advtrain.attacks.compose import restarts
from jax_advtrain.attacks.stepwise import parts

SHORT = {"num_steps": 8, "num_queries": 30}


def names(attack, num_classes):
    return [name for name, _ in attack.members(num_classes)]


def test_members_are_those_of_the_original_and_fewer_classes_are_named():
    standard, plus, rand = (autoattack(epsilon=0.1, version=version) for version in ("standard", "plus", "rand"))
    for classes in (4, 10, 1000):
        assert names(standard, classes) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert names(plus, classes) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
        assert names(rand, classes) == ["apgd-ce", "apgd-dlr"]
    assert names(standard, 3) == ["apgd-ce", "apgd-t-lm", "fab-t", "square"]
    assert names(plus, 3) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t-lm", "fab-t"]
    assert names(rand, 3) == ["apgd-ce", "apgd-dlr"]
    assert names(standard, 2) == ["apgd-ce", "apgd-lm", "fab-t", "square"]
    assert names(plus, 2) == ["apgd-ce", "apgd-lm", "fab", "square"]
    assert names(rand, 2) == ["apgd-ce", "apgd-lm"]


def test_runs_of_each_member():
    def runs(classes, **settings):
        attack = autoattack(epsilon=0.1, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            winners = [part.winner for part in parts(attack, classes)]
        return [winners.count(number) for number in range(max(winners) + 1)]

    assert runs(10) == runs(1000) == [1, 9, 9, 1]
    assert runs(8) == [1, 7, 7, 1] and runs(4) == [1, 3, 3, 1] and runs(3) == [1, 2, 2, 1] and runs(2) == [1, 1, 1, 1]
    assert runs(10, norm="l1") == [5, 5, 9, 1]
    assert runs(10, version="plus") == runs(10, version="plus", norm="l1") == [5, 5, 5, 1, 9, 9]
    assert runs(10, version="rand") == [1, 1]
    ((_, first), (_, second), *_) = autoattack(epsilon=12.0, norm="l1").members(10)
    assert all("0.3" not in repr(attack) and repr(attack).count("Stage") == 3 for attack in (first, second))
    # 100 steps of two passes and one more; targets ranked, clean images classified; FAB 3 passes a step.
    assert autoattack(epsilon=0.1).passes == 1 + 201 + 9 * 202 + 9 * (1 + 300 + 3 + 1 + 1) + 5001


def test_it_says_what_replaces_what_and_is_silent_from_four_classes():
    images, labels = pixels(2), np.zeros(2, np.int32)

    def said(classes, version="standard", traced=False):
        attack = autoattack(epsilon=0.1, version=version, **SHORT)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if traced:
                jax.eval_shape(lambda: attack.run(keys(2), smooth_model(classes=classes), images, labels))
            else:
                parts(attack, classes)
        return [str(warning.message) for warning in caught]

    assert said(4) == [] and said(3, "rand") == []
    (three,), (two,), (rand,) = said(3), said(2), said(2, "rand", traced=True)
    assert three.startswith("autoattack on 3 classes: apgd-t-lm") and "2 targets" in three
    assert two.startswith("autoattack on 2 classes: apgd-lm") and "one target" in two
    assert "in place of apgd-dlr" in rand and all("\n" not in text for text in (three, two, rand))
    (plus,) = said(2, "plus")
    assert "apgd-lm" in plus and "without apgd-t and fab-t" in plus


@pytest.fixture(scope="module")
def four_classes():
    logits_fn, images = smooth_model(seed=1, scale=2.0, classes=4), pixels(16, seed=1)
    labels = np.array(jnp.argmax(logits_fn(images), axis=1), np.int32)
    labels[5] = (labels[5] + 1) % 4
    return logits_fn, images, labels


@pytest.mark.slow
def test_parts_run_by_hand_are_the_run(four_classes):
    logits_fn, images, labels = four_classes
    attack = autoattack(epsilon=0.13, **SHORT)
    whole = run(attack, keys(16), logits_fn, images, labels)
    by_parts = by_hand(attack, keys(16), logits_fn, images, labels, 4, stops=True)
    others = np.arange(16) != 5
    for field, one, other in zip(whole._fields, whole, by_parts, strict=True):
        if field not in ("hits", "zero_gradients"):
            np.testing.assert_allclose(one[others], other[others], atol=1e-5, err_msg=field)
    assert 0 < np.sum(whole.is_right) < 15
    assert np.all(lengths(whole.images - images, "linf") <= 0.13 + 1e-6)
    np.testing.assert_array_equal(attacks.is_right(logits_fn(whole.images), labels), whole.is_right)
    # A sample that is wrong already keeps its image and is attacked by none.
    assert same_bits(whole.images[5], images[5]) and not whole.is_right[5] and whole.hits[5] == 0
    # Nothing recompiles for another radius, and none moves anything.
    before = compiled._cache_size()
    still = run(autoattack(epsilon=0.0, **SHORT), keys(16), logits_fn, images, labels)
    assert compiled._cache_size() == before
    assert same_bits(still.images, images) and np.array_equal(still.is_right, others)
    order = np.random.default_rng(0).permutation(16)
    permuted = run(attack, keys(16)[order], logits_fn, images[order], labels[order])
    for one, other in zip(whole, permuted, strict=True):
        np.testing.assert_allclose(one[order], other, atol=1e-5)


@pytest.mark.slow
def test_two_classes_and_one_logit_find_the_boundary_alike():
    logits_fn, images, labels, distances = two_classes()
    matrix, bias = logits_fn.args[0]
    one = jax.tree_util.Partial(
        lambda weights, images: linear(weights, images)[:, 0], (matrix[:, 1:] - matrix[:, :1], bias[1:] - bias[:1])
    )
    attack = autoattack(epsilon=0.0, **SHORT)
    epsilon = np.where(np.arange(8) % 2, 1.001, 0.999) * distances["linf"]
    with pytest.warns(UserWarning, match="2 classes"):
        two = run(attack, keys(8), logits_fn, images, labels, epsilon=epsilon)
    with pytest.warns(UserWarning, match="2 classes"):
        single = run(attack, keys(8), one, images, labels, epsilon=epsilon)
    np.testing.assert_array_equal(two.is_right, np.arange(8) % 2 == 0)
    for field in ("images", "is_right", "score", "winner"):
        np.testing.assert_allclose(getattr(two, field), getattr(single, field), atol=1e-5, err_msg=field)


@pytest.mark.slow
def test_a_member_takes_what_those_before_it_left():
    # Bounded logits whose gradient is zero at the clean images: the ascents see nothing, the queries do.
    images, labels = np.full((8, 3, 2, 1), 0.5, np.float32), np.zeros(8, np.int32)

    def masked(images):
        mean = jax.lax.stop_gradient(jnp.mean(images, axis=(1, 2, 3)))
        away = 10 * jnp.abs(mean - 0.5) - 0.3
        return jnp.stack([jnp.zeros_like(away), away, away - 1, away - 2], axis=1)

    attack = autoattack(epsilon=0.1, num_steps=2, num_queries=60)
    found = run(attack, keys(8), jax.tree_util.Partial(masked), images, labels)
    by_square = found.winner == 3
    assert np.all(by_square[~found.is_right] | (found.winner[~found.is_right] < 2)) and np.any(by_square)
    assert np.all(found.zero_gradients[by_square] > 0)


def test_rand_averages_over_a_stochastic_model_and_the_others_refuse_it(four_classes):
    logits_fn, images, labels = four_classes

    def noisy(weights, images, key):
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(key)
        return logits_fn.func(weights, images + 0.05 * noise)

    model = attacks.stochastic(jax.tree_util.Partial(noisy, logits_fn.args[0]))
    for version in ("standard", "plus"):
        attack = autoattack(epsilon=0.1, version=version, **SHORT)
        refused(lambda attack=attack: attack.run(keys(16), model, images, labels), 'version="rand"')
    rand = autoattack(epsilon=0.1, version="rand", num_steps=3)
    assert rand.passes == 1 + 2 * (2 * 20 * 3 + 1)
    shape = jax.eval_shape(lambda: rand.run(keys(16), model, images, labels)).images.shape
    assert shape == images.shape


def test_plus_and_l1_trace():
    images, labels = pixels(4), np.zeros(4, np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for classes, settings in (
            (2, {"version": "plus"}),
            (5, {"version": "plus", "norm": "l2"}),
            (3, {"norm": "l1"}),
        ):
            attack = autoattack(epsilon=0.1, num_queries=5, num_steps=10, **settings)
            model = smooth_model(classes=classes)
            found = jax.eval_shape(lambda attack=attack, model=model: attack.run(keys(4), model, images, labels))
            assert found.images.shape == images.shape


def test_refusals():
    images, labels = pixels(2), np.zeros(2, np.int32)
    refused(lambda: autoattack(epsilon=0.1, version="best"), "best", "standard, plus, rand")
    refused(lambda: autoattack(epsilon=0.1, norm="Linf"), "Linf", "linf, l2, l1")
    refused(lambda: autoattack(epsilon=-0.1), "epsilon")
    refused(lambda: autoattack(epsilon=0.1, num_queries=0), "num_queries")
    attack = autoattack(epsilon=0.1)
    refused(lambda: attack.members(1), "num_classes", "2 for one-logit")
    refused(lambda: attack.run(keys(2), smooth_model(), images, labels, targets=labels), "leave out targets=")
    refused(
        lambda: attacks.until_success(restarts(attack, 2)).over(lambda _: _).attack.over(None), "compose its members"
    )
