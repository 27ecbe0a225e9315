"""FAB: known distances, the box, and what a minimum-norm attack promises."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from test_hyperplane import many_classes, size_of, solved
from toy_problems import (
    SHAPE,
    keys,
    linear,
    pixels,
    poisoned_problem,
    run,
    same_bits,
    smooth_model,
    tanh_network,
    two_classes,
)

from jax_advtrain import attacks
from jax_advtrain.attacks.fab import fab

NORMS = ("linf", "l2", "l1")
BATCH, STEPS = 8, 12
SMOOTH = smooth_model(seed=1, scale=2.0)


def smooth_problem(seed=1):
    """Images, some pixels of them on the ends of the box, and labels of which the model is right but for one."""
    images = pixels(BATCH, seed)
    labels = np.array(SMOOTH(images).argmax(-1), np.int32)
    labels[3] = (labels[3] + 1) % 3
    return images, labels


def attack_of(norm, **settings):
    return fab(norm=norm, num_steps=STEPS, **settings)


@pytest.mark.parametrize("norm", NORMS)
def test_distances_to_the_boundaries_of_linear_models(norm):
    logits_fn, images, labels, distances = many_classes()
    nearest = distances[norm].min(1)
    found = run(attack_of(norm), keys(BATCH), logits_fn, images, labels)
    length = size_of(found.images - images, norm)
    np.testing.assert_allclose(length, nearest, rtol=1e-3)
    assert np.all(length >= nearest * (1 - 1e-4))
    assert not np.any(found.is_right) and np.all(found.score > 0) and np.all(found.hits > 0)
    assert np.all(np.argmax(logits_fn(found.images), 1) != labels)
    np.testing.assert_allclose(found.score, attacks.logit_margin(logits_fn(found.images), labels), atol=1e-6)


def test_targets_lead_to_their_boundaries_and_any_misclassification_on_the_way_counts():
    norm = "l2"
    logits_fn, images, labels, distances = many_classes()
    nearest = distances[norm].min(1)
    targets = distances[norm].argmin(1).astype(np.int32)
    targeted = run(attack_of(norm), keys(BATCH), logits_fn, images, labels, targets)
    np.testing.assert_allclose(size_of(targeted.images - images, norm), nearest, rtol=1e-3)
    other = np.where(np.isinf(distances[norm]), -1, distances[norm]).argmax(1)
    away = run(attack_of(norm), keys(BATCH), logits_fn, images, labels, other.astype(np.int32))
    length = size_of(away.images - images, norm)
    assert not np.any(away.is_right) and np.all(np.argmax(logits_fn(away.images), 1) != labels)
    assert np.all(length >= nearest * (1 - 1e-4))
    assert np.all(length <= 1.001 * distances[norm][np.arange(BATCH), other])
    assert np.any(length > 1.01 * nearest)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_the_box_binds(norm):
    logits_fn, _, _, _ = two_classes()
    matrix, bias = (np.asarray(array, np.float64) for array in logits_fn.args[0])
    images = pixels(BATCH, seed=2)
    logits = images.reshape(BATCH, -1).astype(np.float64) @ matrix + bias
    labels = logits.argmax(1).astype(np.int32)
    normal = (matrix[:, 1] - matrix[:, 0]).reshape(SHAPE)
    least = np.array([solved(image, normal, z[0] - z[1], norm) for image, z in zip(images, logits, strict=True)])
    free = np.abs(logits[:, 0] - logits[:, 1]) / size_of(normal[None], {"linf": "l1", "l2": "l2", "l1": "linf"}[norm])
    assert np.mean(least > 1.05 * free) >= 0.25
    if norm == "l2":  # one logit means the classes [0, z]
        logits_fn = jax.tree_util.Partial(
            lambda weights, images: linear(weights, images)[:, 0],
            (jnp.asarray(matrix[:, 1:] - matrix[:, :1], jnp.float32), jnp.asarray(bias[1:] - bias[:1], jnp.float32)),
        )
        labels = labels.astype(np.uint8)
    found = run(attack_of(norm), keys(BATCH), logits_fn, images, labels)
    assert not np.any(found.is_right) and np.all(found.score > 0)
    assert np.all((found.images >= 0) & (found.images <= 1))
    length = size_of(found.images - images, norm)
    np.testing.assert_allclose(length, least, rtol=0.01)
    assert np.all(length >= least * (1 - 1e-4))


def test_curved_boundaries_are_found_nearer_than_pgd_finds_them():
    norm = "linf"
    images, labels = smooth_problem()
    found = run(attack_of(norm), keys(BATCH), SMOOTH, images, labels)
    assert same_bits(found.images[3], images[3]) and not found.is_right[3]
    assert found.score[3] == pytest.approx(float(attacks.logit_margin(SMOOTH(images), labels)[3]), abs=1e-5)
    # A sample is out of reach exactly where the clean image is returned.
    right = np.asarray(attacks.is_right(SMOOTH(found.images), labels))
    np.testing.assert_array_equal(found.is_right, right)
    length = size_of(found.images - images, norm)
    assert np.all((length > 0) == (~found.is_right & (np.arange(BATCH) != 3)))
    assert np.sum(length > 0) >= 6
    ascent = attacks.pgd(norm=norm, epsilon=0.0, num_steps=50, alpha=4, loss="lm", start="clean")
    tried = run(ascent, keys(BATCH), SMOOTH, images, labels, epsilon=0.95 * length)
    np.testing.assert_array_equal(tried.is_right[length > 0], True)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch_and_an_interrupted_run_is_the_same():
    images, labels = smooth_problem()
    attack = attack_of("l2", epsilon=0.5, start="random")
    assert attack_of("l2").epsilon is None
    whole = run(attack, keys(BATCH), SMOOTH, images, labels)
    order = np.array([5, 2, 7, 0, 3, 1, 6, 4])
    other = run(attack, keys(BATCH)[order], SMOOTH, images[order], labels[order])
    for one, two in zip(whole, other, strict=True):
        np.testing.assert_allclose(one[order], two, atol=1e-5)
    part = run(attack, keys(BATCH)[:3], SMOOTH, images[:3], labels[:3])
    for one, two in zip(whole, part, strict=True):
        np.testing.assert_allclose(one[:3], two, atol=1e-5)

    step = jax.jit(lambda state: attack.step(SMOOTH, state))
    state = jax.jit(lambda: attack.init(keys(BATCH), SMOOTH, images, labels))()
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {BATCH}
    kept = []
    for done in range(STEPS):
        np.testing.assert_array_equal(state.steps, done)
        kept.append((np.asarray(attack.succeeded(state)), np.asarray(state.distance)))
        state = step(state)
    for one, two in zip(jax.jit(lambda state: attack.result(SMOOTH, state))(state), whole, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    # Distances only shrink, so what succeeded stays so.
    assert all(np.all(late[1] <= early[1]) for early, late in itertools.pairwise(kept))
    length = size_of(whole.images - images, "l2")
    succeeded = np.asarray(attack.succeeded(state))
    assert np.all(length[succeeded] <= 0.5 + 1e-6) and not np.any(whole.is_right[succeeded])
    assert succeeded[3] and 1 < succeeded.sum() < BATCH
    # Nothing from beyond it is returned. Without a radius nothing succeeds, FAB improves to the end.
    beyond = np.isfinite(state.distance) & ~succeeded
    assert np.any(beyond) and np.all(whole.is_right[beyond]) and same_bits(whole.images[beyond], images[beyond])
    unbounded = state._replace(problem=state.problem._replace(epsilon=jnp.full(BATCH, jnp.inf)))
    assert not np.any(attack.succeeded(unbounded))


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_lie_at_half_the_radius(norm):
    images = pixels(BATCH, low=0.4, high=0.6)
    labels = np.zeros(BATCH, np.int32)
    epsilon = np.array([0.0, 0.01, 0.02, 0.05, 0.1, 0.1, 0.15, 0.2], np.float32)
    attack = attack_of(norm, start="random")
    init = jax.jit(lambda key, **given: attack.init(key, SMOOTH, images, labels, epsilon=epsilon, **given).iterate)
    started = [np.asarray(init(keys(BATCH, seed))) for seed in (0, 1, 0)]
    np.testing.assert_allclose(size_of(started[0] - images, norm), epsilon / 2, rtol=1e-3, atol=1e-6)
    assert same_bits(started[0], started[2]) and same_bits(started[0][0], images[0])
    assert np.all(np.abs(started[0] - started[1]).reshape(BATCH, -1).max(1)[1:] > 0)
    if norm != "linf":
        return
    given = np.full_like(images, 1.5)
    np.testing.assert_array_equal(init(keys(BATCH), start=given), 1)
    with pytest.raises(ValueError, match="start='clean'"):
        attack_of(norm, start="random").init(keys(BATCH), SMOOTH, images, labels)
    with pytest.raises(ValueError, match="give images of shape"):
        init(keys(BATCH), start=given[:2])


def test_bad_gradients_are_counted_and_do_no_harm():
    bad, good, images, labels, distances = poisoned_problem()
    attack = attack_of("l2")
    found = run(attack, keys(BATCH), bad, images, labels)
    healthy = run(attack, keys(BATCH), good, images, labels)
    assert np.all(np.isfinite(found.images)) and np.all(np.isfinite(found.score))
    np.testing.assert_array_equal(found.images[[0, 7]], healthy.images[[0, 7]])
    np.testing.assert_array_equal(found.zero_gradients, STEPS * np.array([0, 1, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_array_equal(found.nonfinite_gradients, STEPS * np.array([0, 0, 1, 1, 1, 1, 0, 0]))
    np.testing.assert_allclose(size_of(healthy.images - images, "l2"), distances["l2"], rtol=1e-3)
    assert np.all(found.is_right[1:5]) and same_bits(found.images[1:5], images[1:5])
    # Five healthy pixels beside one NaN still lead to the boundary.
    assert not found.is_right[5]


def test_a_model_that_answers_nan_is_wrong_from_the_start():
    logits_fn, images, labels, _ = two_classes()
    broken = jax.tree_util.Partial(lambda images: logits_fn(images).at[2].set(jnp.nan))
    found = run(attack_of("linf"), keys(BATCH), broken, images, labels)
    assert np.all(np.isfinite(found.images)) and not np.any(found.is_right)
    np.testing.assert_array_equal(np.isnan(found.score), np.arange(BATCH) == 2)
    assert same_bits(found.images[2], images[2])


def test_bfloat16_images():
    logits_fn, images, labels, distances = two_classes()
    found = run(attack_of("l2"), keys(BATCH), logits_fn, images.astype(jnp.bfloat16), labels)
    assert found.images.dtype == jnp.bfloat16 and found.score.dtype == jnp.float32
    assert not np.any(found.is_right)
    length = size_of(found.images.astype(np.float32) - images, "l2")
    np.testing.assert_allclose(length, distances["l2"], atol=0.02)


@pytest.mark.slow
def test_new_numbers_do_not_compile_again_and_jit_changes_nothing():
    traces = []

    def counted(weights, images):
        traces.append(images.shape)
        return tanh_network(weights, images)

    images, labels = smooth_problem()
    counting = jax.tree_util.Partial(counted, SMOOTH.args[0])
    first = run(fab(norm="l2", num_steps=2, epsilon=0.1), keys(BATCH), counting, images, labels)
    once = len(traces)
    run(fab(norm="l2", num_steps=2, epsilon=0.2, eta=1.2, beta=0.5), keys(BATCH), counting, images, labels)
    assert len(traces) == once > 0
    plain = fab(norm="l2", num_steps=2, epsilon=0.1).run(keys(BATCH), SMOOTH, images, labels)
    for one, other in zip(first, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
def test_vmap_over_models_and_shard_map():
    images, labels = smooth_problem()
    attack = attack_of("linf")
    models = [SMOOTH, smooth_model(seed=2, scale=2.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    together = jax.jit(jax.vmap(lambda model: attack.run(keys(BATCH), model, images, labels)))(stacked)
    for number, model in enumerate(models):
        for one, other in zip(together, run(attack, keys(BATCH), model, images, labels), strict=True):
            np.testing.assert_allclose(one[number], other, atol=1e-4)

    mesh, rows = Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data")

    def attacked(key, images, labels):
        return [attack_of(norm).run(key, SMOOTH, images, labels) for norm in ("linf", "l1")]

    spread = jax.jit(jax.shard_map(attacked, mesh=mesh, in_specs=(rows,) * 3, out_specs=rows, check_vma=True))
    for norm, found in zip(("linf", "l1"), spread(keys(BATCH), images, labels), strict=True):
        for one, other in zip(found, run(attack_of(norm), keys(BATCH), SMOOTH, images, labels), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_only_the_classes_asked_for_are_looked_at():
    logits_fn, images, labels, _ = many_classes()
    second = np.argsort(np.asarray(logits_fn(images)))[:, -2].astype(np.int32)
    two = run(attack_of("l2", num_classes=2), keys(BATCH), logits_fn, images, labels)
    targeted = run(attack_of("l2"), keys(BATCH), logits_fn, images, labels, second)
    np.testing.assert_allclose(two.images, targeted.images, atol=1e-6)
    assert fab().passes == 304 and fab(num_classes=4, num_steps=10, search_steps=0).passes == 51


def test_settings_that_make_no_sense():
    for settings, said in (
        ({"norm": "l3"}, "norm is 'l3'"),
        ({"start": "warm"}, "clean, random"),
        ({"num_steps": 0}, "whole number from 1"),
        ({"search_steps": -1}, "whole number from 0"),
        ({"num_classes": 1}, "whole number from 2"),
        ({"epsilon": -1.0}, "finite numbers from 0"),
        ({"alpha_max": 1.5}, "from 0 to 1"),
        ({"eta": 0.9}, "number from 1"),
        ({"beta": float("nan")}, "finite numbers"),
    ):
        with pytest.raises(ValueError, match=said):
            fab(**settings)
    with pytest.raises(ValueError, match="2 classes at least"):
        fab().run(keys(BATCH), lambda x: x.reshape(BATCH, -1)[:, :1], pixels(BATCH), np.zeros(BATCH, np.int32))
