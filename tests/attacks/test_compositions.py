"""Attacks made from attacks: what they find, what they spare, and that they fall apart into their parts."""

import dataclasses
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import composition_matrix as matrix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from toy_problems import (
    FEATURES,
    compiled,
    keys,
    lengths,
    linear,
    pixels,
    right_labels,
    run,
    same_bits,
    smooth_model,
    two_classes,
)

from jax_advtrain import attacks
from jax_advtrain.attacks.at_radius import at_radius
from jax_advtrain.attacks.combine import first_success, stronger
from jax_advtrain.attacks.compose import restarts, worst_of
from jax_advtrain.attacks.eot import eot
from jax_advtrain.attacks.fab import fab
from jax_advtrain.attacks.rounded import rounded
from jax_advtrain.attacks.stepwise import fold_in, parts
from jax_advtrain.attacks.targeting import ranked_target, targeted_at
from jax_advtrain.attacks.temperature import temperature_sweep
from jax_advtrain.attacks.until_success import until_success

BATCH, CLASSES = 16, 4
LABELS = np.arange(BATCH) % CLASSES
FEW = ("until_success(worst_of)", "temperature_sweep(rounded)", "restarts(at_radius)")


def script(*pairs):
    """The composition matrix in a process with 8 forced devices, started at once."""
    return subprocess.Popen(
        [sys.executable, str(Path(matrix.__file__)), *pairs],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module", autouse=True)
def eight_devices():
    process = script(*FEW)
    yield process
    process.kill()
    process.communicate()


def pgd(**settings):
    return attacks.pgd(**{"epsilon": 0.15, "num_steps": 2} | settings)


def model(scale=2.0):
    return smooth_model(scale=scale, classes=CLASSES)


@jax.jit
def folded(key, path):
    return jax.lax.fori_loop(0, len(path), lambda i, key: fold_in(key, path[i]), key)


def by_hand(attack, key, logits_fn, images, labels, num_classes, *, stops=False):
    """The result of an attack from its parts, run one by one."""
    best = None
    for part in parts(attack, num_classes):
        found = run(part.attack, folded(key, np.array(part.path, np.int32)), logits_fn, images, labels)
        found = found._replace(winner=np.full_like(found.winner, part.winner))
        best = found if best is None else (first_success if stops else stronger)(best, found)
    return best


COMPOSED = {
    "targets of restarts": targeted_at(restarts(pgd(), 2), 2),
    "temperatures": temperature_sweep(worst_of(pgd(loss="slm"), pgd()), [1.0, 0.1]),
    "until success": until_success(restarts(targeted_at(pgd()), 2)),
    "rounded": rounded(restarts(pgd(norm="l2", epsilon=0.3), 3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSED)
def test_the_parts_run_by_hand_are_the_run(name):
    attack, images, logits_fn = COMPOSED[name], pixels(BATCH), model()
    labels = right_labels(logits_fn, images)
    whole = run(attack, keys(BATCH), logits_fn, images, labels)
    by_parts = by_hand(attack, keys(BATCH), logits_fn, images, labels, CLASSES, stops=name == "until success")
    for field, one, other in zip(whole._fields, whole, by_parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=field)
    assert 0 < np.sum(whole.is_right) < BATCH and len(set(whole.winner)) > 1


def test_a_composed_result_is_independent_of_batch_and_order():
    attack, images, logits_fn = COMPOSED["targets of restarts"], pixels(BATCH), model()
    labels, order = right_labels(logits_fn, images), np.random.default_rng(0).permutation(BATCH)
    whole = run(attack, keys(BATCH), logits_fn, images, labels)
    permuted = run(attack, keys(BATCH)[order], logits_fn, images[order], labels[order])
    for one, other in zip(whole, permuted, strict=True):
        np.testing.assert_allclose(one[order], other, atol=1e-5)


def test_targets_are_the_largest_logits_beside_the_label():
    logits = np.array([[3.0, 1.0, 2.0, 2.0], [0.0, -np.inf, -np.inf, 5.0], [-np.inf, 1.0, 0.0, -1.0]], np.float32)
    labels = np.array([0, 1, 0], np.int32)
    ranked = np.stack([ranked_target(logits, labels, rank) for rank in range(3)], axis=1)
    np.testing.assert_array_equal(ranked, [[2, 3, 1], [3, 0, 2], [1, 2, 3]])
    # Of one logit, and of dense labels with a class axis behind.
    np.testing.assert_array_equal(ranked_target(jnp.array([0.3, -1.0]), np.array([0, 1], np.int32), 0), [1, 0])
    dense = np.random.default_rng(0).normal(size=(2, 3, 3, 4))
    flat = ranked_target(dense.reshape(18, 4), np.arange(18, dtype=np.int32) % 4, 1)
    np.testing.assert_array_equal(
        ranked_target(dense, (np.arange(18, dtype=np.int32) % 4).reshape(2, 3, 3), 1), np.reshape(flat, (2, 3, 3))
    )


@pytest.mark.slow
def test_targeted_at_finds_the_one_class_within_reach():
    # Class j has the logit of pixel j: from class 0 each sample can reach the one class whose pixel is raised, although
    # another one has the larger logit where the loss looks no further than the first target.
    logits_fn = jax.tree_util.Partial(linear, (jnp.eye(FEATURES, 4), jnp.array([0.0, 0.0, 0.0, 0.04])))
    flat = np.full((3, FEATURES), 0.5, np.float32)
    flat[:, 0], flat[:, 3] = 0.6, 1.0
    flat[np.arange(3), [1, 2, 1]] += 0.05
    images, labels = flat.reshape(3, 3, 2, 1), np.full(3, 3, np.int32)
    # Pixel 3 stands at 1 and class 3 is ahead by 0.44 of class 0, by 0.49 of the raised one.
    attack = pgd(epsilon=0.23, num_steps=4, start="clean", loss="lm")
    found = run(targeted_at(attack), keys(3), logits_fn, images, labels)
    assert not np.any(found.is_right)
    np.testing.assert_array_equal(found.winner, 0)
    below = run(targeted_at(attack), keys(3), logits_fn, images, labels, epsilon=0.219)
    assert np.all(below.is_right) and np.all(below.hits == 0)


@pytest.mark.parametrize("one_logit", [False, True])
def test_targeted_at_on_two_classes_has_one_target(one_logit):
    logits_fn, images, labels, distances = two_classes()
    attack = targeted_at(pgd(epsilon=0.0, num_steps=10, loss="bce" if one_logit else "ce", start="clean"), 9)
    if one_logit:
        matrix_, bias = logits_fn.args[0]
        weights = (matrix_[:, 1:] - matrix_[:, :1], bias[1:] - bias[:1])
        logits_fn = jax.tree_util.Partial(lambda weights, images: linear(weights, images)[:, 0], weights)
    assert len(parts(attack, 2)) == 1
    below = run(attack, keys(8), logits_fn, images, labels, epsilon=0.999 * distances["linf"])
    above = run(attack, keys(8), logits_fn, images, labels, epsilon=1.001 * distances["linf"])
    assert np.all(below.is_right) and not np.any(above.is_right)


def test_one_compilation_serves_all_ranks_and_temperatures():
    for attack in (targeted_at(pgd(), 3), temperature_sweep(pgd(), [1.0, 0.3, 0.1])):
        runs = parts(attack, CLASSES)
        assert len(runs) == 3
        assert len({jax.tree.structure(part.attack) for part in runs}) == 1
        shapes = {tuple((np.shape(leaf), np.asarray(leaf).dtype) for leaf in jax.tree.leaves(p.attack)) for p in runs}
        assert len(shapes) == 1
    images, logits_fn = pixels(BATCH), model()
    sweep = temperature_sweep(pgd(), [1.0, 0.1])
    run(sweep, keys(BATCH), logits_fn, images, LABELS)
    before = compiled._cache_size()
    run(dataclasses.replace(sweep, temperatures=np.array([0.7, 0.2])), keys(BATCH), logits_fn, images, LABELS)
    assert compiled._cache_size() == before


@pytest.mark.slow
def test_memory_and_program_do_not_grow_with_the_number_of_runs():
    images = jnp.zeros((64, 28, 28, 1))
    weights = (jnp.ones((28 * 28, 8)), jnp.ones((8, 30)))
    logits_fn = jax.tree_util.Partial(lambda w, x: jnp.tanh(x.reshape(len(x), -1) @ w[0]) @ w[1], weights)
    sizes = []
    for count in (2, 20):
        program = compiled.lower(
            targeted_at(pgd(start="clean"), count), jax.random.key(0), logits_fn, images, np.zeros(64, np.int32)
        ).compile()
        sizes.append((program.memory_analysis().temp_size_in_bytes, len(program.as_text())))
    assert sizes[0][0] > images.nbytes
    assert abs(sizes[0][0] - sizes[1][0]) < 1000 and abs(sizes[0][1] - sizes[1][1]) < 100, sizes


def counting(calls):
    logits_fn, images, labels, distances = two_classes()

    def counted(weights, images):
        jax.debug.callback(lambda: calls.append(1))
        return linear(weights, images)

    return jax.tree_util.Partial(counted, *logits_fn.args), images, labels, distances["linf"]


def test_until_success_spares_what_comes_after_it():
    calls = []
    logits_fn, images, labels, distance = counting(calls)
    long = pgd(num_steps=50, start="clean", epsilon=0.0)
    once = until_success(worst_of(long, restarts(long, 3), targeted_at(long)))

    def found(epsilon):
        calls.clear()
        result = run(once, keys(8), logits_fn, images, labels, epsilon=epsilon)
        jax.effects_barrier()
        return result, len(calls)

    # The first step of a member does not reach the boundary, but one of the first steps does.
    fooled, few = found(30 * distance)
    assert not np.any(fooled.is_right) and np.all(fooled.winner == 0) and few <= 8, few
    # Nothing is spared as long as one sample is right.
    stubborn, all_calls = found(np.where(np.arange(8) == 3, 0.9, 30) * distance)
    np.testing.assert_array_equal(stubborn.is_right, np.arange(8) == 3)
    assert all_calls == once.passes - 5 * 50  # a step's forward and backward pass are one call
    # Samples that the first member fooled were counted in no other, and no longer than until they were fooled.
    np.testing.assert_array_equal(stubborn.hits, np.where(np.arange(8) == 3, 0, fooled.hits))


@pytest.mark.slow
def test_until_success_finds_every_sample_that_an_iterate_fooled():
    # Waves, along which the last iterate is often right again.
    weights = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)).astype(np.float32)
    logits_fn = jax.tree_util.Partial(lambda w, x: jnp.sin(30 * x.reshape(len(x), -1)) @ w, weights)
    images = pixels(BATCH)
    labels = right_labels(logits_fn, images)
    attack = pgd(epsilon=0.1, num_steps=4, alpha=6.0)
    attack = worst_of(attack, restarts(attack, 2))
    plain = run(attack, keys(BATCH), logits_fn, images, labels)
    stopped = run(until_success(attack), keys(BATCH), logits_fn, images, labels)
    np.testing.assert_array_equal(stopped.is_right, plain.hits == 0)
    assert np.any(stopped.is_right != plain.is_right)
    assert until_success(until_success(attack)).stops_early
    assert jax.tree.structure(until_success(until_success(attack))) == jax.tree.structure(until_success(attack))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_at_radius_succeeds_exactly_above_the_distance(norm):
    logits_fn, images, labels, distances = two_classes()
    attack, true = at_radius(fab(norm=norm, num_steps=10), 0.0), distances[norm]
    below = run(attack, keys(8), logits_fn, images, labels, epsilon=0.999 * true)
    above = run(attack, keys(8), logits_fn, images, labels, epsilon=1.01 * true)
    assert np.all(below.is_right) and same_bits(below.images, images)
    np.testing.assert_allclose(below.score, attacks.classification_margin(logits_fn(images), labels), atol=1e-6)
    assert not np.any(above.is_right) and np.all(above.score > 0)
    assert np.all(lengths(above.images - images, norm) <= 1.01 * true * (1 + 2e-5))
    # Wrong from the start: at distance 0, even at radius 0; that of the attack itself is the leaf that runs.
    wrong = run(attack, keys(8), logits_fn, images, 1 - labels)
    assert same_bits(wrong.images, images) and not np.any(wrong.is_right)
    half = run(dataclasses.replace(attack, epsilon=np.where(np.arange(8) < 4, 1.5, 0.5) * true), keys(8), logits_fn, images, labels)  # fmt: skip # noqa: E501
    np.testing.assert_array_equal(half.is_right, np.arange(8) >= 4)


@pytest.mark.slow
def test_eot_reaches_every_member_and_averages():
    weights = model().args[0]

    def noisy(weights, images, key):
        moved = images + 0.5 * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(key)
        return model().func(weights, moved)

    stochastic = attacks.stochastic(jax.tree_util.Partial(noisy, weights))
    attack = pgd(start="clean", num_steps=1, alpha=1.0)
    assert eot(attack, 7).eot_passes == 7
    several = worst_of(rounded(restarts(attack, 2)), targeted_at(attack, 2))
    for composed in (eot(several, 3), eot(until_success(several), 3)):
        assert all("eot_passes=3" in repr(part.attack) for part in parts(composed, CLASSES))
    assert np.isfinite(run(eot(several, 3), keys(BATCH), stochastic, pixels(BATCH), LABELS).score).all()
    with pytest.raises(ValueError, match="one draw of a stochastic model"):
        run(eot(until_success(several), 3), keys(BATCH), stochastic, pixels(BATCH), LABELS)
    # More passes, a better direction: the mean loss of the noisy model after one step.
    images = np.repeat(pixels(4, low=0.3, high=0.7), 100, axis=0)
    labels = np.repeat(right_labels(model(), images[::100]), 100)

    def mean_loss(passes):
        found = run(eot(attack, passes), keys(400), stochastic, images, labels).images
        return np.mean(attacks.cross_entropy(stochastic.function(found, keys(400, seed=1)), labels))

    assert mean_loss(30) > mean_loss(1) + 0.02


def refused(call, *words):
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_refusals():
    attack, images, logits_fn = pgd(), pixels(BATCH), model()
    for bad in (0, -1, 2.5, True, "2"):
        refused(lambda bad=bad: restarts(attack, bad), "num_restarts", "whole number")
        refused(lambda bad=bad: targeted_at(attack, bad), "num_targets", "whole number")
        refused(lambda bad=bad: eot(attack, bad), "num_passes", "whole number")
        refused(lambda bad=bad: rounded(attack, bad), "levels", "whole number")
    for bad in ([], [0.0, 1.0], [-1.0], [np.nan], [[1.0, 2.0]], 1.0, None, "1"):
        refused(lambda bad=bad: temperature_sweep(attack, bad), "temperature")
    refused(lambda: temperature_sweep(attack, [1.0], per_class=True), "(num, classes)")
    refused(lambda: temperature_sweep(pgd(loss=attacks.with_temperature("ce", 2.0)), [1.0]), "a temperature already")
    for bad in (-0.1, np.nan, "0.3", None):
        refused(lambda bad=bad: at_radius(fab(), bad), "epsilon")
    refused(lambda: worst_of(), "at least one")
    for compose in matrix.OUTER.values():
        refused(lambda compose=compose: compose("pgd"), "needs an attack, not 'pgd'")
    single = jax.tree_util.Partial(lambda images: images.reshape(BATCH, -1)[:, :1])
    refused(lambda: targeted_at(attack).run(keys(BATCH), single, images, LABELS), "one logit a class")
    refused(
        lambda: targeted_at(attack).run(keys(BATCH), logits_fn, images, LABELS, targets=LABELS), "leave out targets="
    )
    coarse = images.astype(jnp.bfloat16)
    refused(lambda: rounded(attack).run(keys(BATCH), logits_fn, coarse, LABELS), "bfloat16", "255 levels", "float32")


def traced(outer, inner):
    """Traces a pair in jit, in vmap over models, in shard_map: all three at once."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    _, key, images, labels = matrix.problem()
    attack = matrix.OUTER[outer](matrix.inner_attacks()[inner])
    everywhere = matrix.spread(matrix.over_models, mesh, PartitionSpec(None, "data"))
    return jax.eval_shape(everywhere, attack, matrix.two_models(), key, images, labels)


def test_every_pair_of_the_matrix_works_or_is_refused():
    for outer, inner, mark in matrix.pairs():
        if mark != ".":
            refused(partial(traced, outer, inner), matrix.REFUSALS[mark])
        elif inner in ("worst_of", "at_radius") or (outer, inner) == ("restarts", "autoattack"):
            # The others are traced and compiled by the slow test, some of them on eight devices below.
            assert traced(outer, inner).images.shape == (2, matrix.BATCH, 3, 2, 1)


def test_composed_attacks_under_jit_vmap_and_shard_map_on_eight_devices(eight_devices):
    output, _ = eight_devices.communicate(timeout=600)
    assert eight_devices.returncode == 0, output
    assert output.count("equal: ") == len(FEW), output


WORKING = [f"{outer}({inner})" for outer, inner, mark in matrix.pairs() if mark == "."]


@pytest.mark.parametrize(
    "pairs", [pytest.param(WORKING[::4], marks=pytest.mark.slow), pytest.param(WORKING, marks=pytest.mark.nightly)],
    ids=["every fourth", "all"],
)  # fmt: skip
def test_the_matrix_on_eight_devices(pairs):
    process = script(*pairs)
    output, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, output
    assert len(WORKING) > 50 and output.count("equal: ") == len(pairs), output


@pytest.mark.slow
def test_float64_process_keeps_float32():
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("error")
        attack = until_success(worst_of(pgd(), temperature_sweep(targeted_at(rounded(pgd()), 2), [0.5, 1.0])))
        found = run(attack, keys(BATCH), model(), pixels(BATCH), LABELS)
    assert (found.images.dtype, found.hits.dtype, found.winner.dtype) == (np.float32, np.int32, np.int32)
