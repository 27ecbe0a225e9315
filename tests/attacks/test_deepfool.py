"""DeepFool: known distances, the box, samples that rest."""

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
from jax_advtrain.attacks.deepfool import deepfool

NORMS = ("l2", "linf")
BATCH = 8
SMOOTH = smooth_model(seed=1, scale=2.0)


def smooth_problem(seed=1):
    """Images, some pixels of them on the ends of the box, and labels of which the model is right but for one."""
    images = pixels(BATCH, seed)
    labels = np.array(SMOOTH(images).argmax(-1), np.int32)
    labels[3] = (labels[3] + 1) % 3
    return images, labels


@pytest.mark.parametrize("norm", NORMS)
def test_distances_to_the_boundaries_of_linear_models(norm):
    logits_fn, images, labels, distances = many_classes()
    nearest = distances[norm].min(1) + 1e-4  # which each step goes beyond
    for overshoot in (0.02, 0.2):
        found = run(deepfool(norm=norm, overshoot=overshoot), keys(BATCH), logits_fn, images, labels)
        np.testing.assert_allclose(size_of(found.images - images, norm), (1 + overshoot) * nearest, rtol=1e-3)
        assert not np.any(found.is_right) and np.all(found.score > 0)
        np.testing.assert_array_equal(found.hits, 1)
        np.testing.assert_allclose(found.score, attacks.logit_margin(logits_fn(found.images), labels), atol=1e-6)
    # Without overshoot rounding alone decides when a sample is beyond the boundary: it must not stop short of it.
    found = run(deepfool(norm=norm, overshoot=0.0), keys(BATCH), logits_fn, images, labels)
    assert not np.any(found.is_right)
    np.testing.assert_allclose(size_of(found.images - images, norm), nearest, rtol=1e-3)
    if norm == "l2":
        targets = distances[norm].argmin(1).astype(np.int32)
        found = run(deepfool(), keys(BATCH), logits_fn, images, labels, targets)
        np.testing.assert_allclose(size_of(found.images - images, norm), 1.02 * nearest, rtol=1e-3)
        np.testing.assert_array_equal(np.argmax(logits_fn(found.images), 1), targets)


def clipped_steps(image, normal, offset, norm):
    """A second writing for <normal, x - image> = offset, as the authors' code steps: a little too far, then clipped."""
    x, side = image.astype(np.float64), np.sign(offset)
    direction = normal / np.linalg.norm(normal) if norm == "l2" else np.sign(normal)
    slope = np.linalg.norm(normal) if norm == "l2" else np.abs(normal).sum()
    while (left := side * (offset - (normal * (x - image)).sum())) >= 0:
        x = np.clip(x + 1.02 * (left / slope + 1e-4) * side * direction, 0, 1)
    return x


@pytest.mark.parametrize("norm", NORMS)
def test_the_box_binds(norm):
    logits_fn, _, _, _ = two_classes()
    matrix, bias = (np.asarray(array, np.float64) for array in logits_fn.args[0])
    images = pixels(BATCH, seed=2)
    logits = images.reshape(BATCH, -1).astype(np.float64) @ matrix + bias
    labels = logits.argmax(1).astype(np.int32)
    normal = (matrix[:, 1] - matrix[:, 0]).reshape(SHAPE)
    least = np.array([solved(image, normal, z[0] - z[1], norm) for image, z in zip(images, logits, strict=True)])
    if norm == "l2":  # one logit means the classes [0, z]
        logits_fn = jax.tree_util.Partial(
            lambda weights, images: linear(weights, images)[:, 0],
            (jnp.asarray(matrix[:, 1:] - matrix[:, :1], jnp.float32), jnp.asarray(bias[1:] - bias[:1], jnp.float32)),
        )
        labels = labels.astype(np.uint8)
    found = run(deepfool(norm=norm), keys(BATCH), logits_fn, images, labels)
    length = size_of(found.images - images, norm)
    assert not np.any(found.is_right) and np.all((found.images >= 0) & (found.images <= 1))
    # Its steps know no box and are clipped, so that it ends near the least distance but not at it.
    assert np.all(length >= least * (1 - 1e-5))
    wanted = [clipped_steps(image, normal, z[0] - z[1], norm) for image, z in zip(images, logits, strict=True)]
    np.testing.assert_allclose(found.images, wanted, atol=1e-5)


def test_nothing_from_beyond_the_radius_is_returned():
    images, labels = smooth_problem()
    far = run(deepfool(), keys(BATCH), SMOOTH, images, labels)
    length = size_of(far.images - images, "l2")
    epsilon = np.where(np.arange(BATCH) % 2, 1.01, 0.99).astype(np.float32) * length
    found = run(deepfool(), keys(BATCH), SMOOTH, images, labels, epsilon=epsilon)
    within = ~far.is_right & (length <= epsilon)
    assert 0 < within.sum() < BATCH
    np.testing.assert_array_equal(~found.is_right, within)
    assert same_bits(found.images[~within], images[~within]) and same_bits(found.images[within], far.images[within])
    clean = np.asarray(attacks.classification_margin(SMOOTH(images), labels))
    np.testing.assert_allclose(found.score[~within], clean[~within], atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_curved_boundaries(norm):
    images, labels = smooth_problem()
    found = run(deepfool(norm=norm), keys(BATCH), SMOOTH, images, labels)
    assert same_bits(found.images[3], images[3]) and not found.is_right[3]
    assert found.score[3] == pytest.approx(float(attacks.logit_margin(SMOOTH(images), labels)[3]), abs=1e-5)
    np.testing.assert_array_equal(found.is_right, np.asarray(attacks.is_right(SMOOTH(found.images), labels)))
    assert np.sum(~found.is_right) >= 7
    assert same_bits(found.images[found.is_right], images[found.is_right])
    # Beyond the boundary, but not far: of most samples a little less of the perturbation does not fool the model.
    back = images + 0.9 * (found.images - images)
    moved = ~found.is_right & (np.arange(BATCH) != 3)
    assert np.mean(np.asarray(attacks.is_right(SMOOTH(back), labels))[moved]) > 0.5


def test_samples_rest_once_fooled_and_do_not_depend_on_their_batch():
    images, labels = smooth_problem()
    attack = deepfool(num_steps=6, epsilon=0.4)
    whole = run(attack, keys(BATCH), SMOOTH, images, labels)
    order = np.array([5, 2, 7, 0, 3, 1, 6, 4])
    other = run(attack, keys(BATCH, 9)[order], SMOOTH, images[order], labels[order])
    for one, two in zip(whole, other, strict=True):
        np.testing.assert_allclose(one[order], two, atol=1e-5)
    for one, two in zip(whole, run(attack, keys(3), SMOOTH, images[:3], labels[:3]), strict=True):
        np.testing.assert_allclose(one[:3], two, atol=1e-5)

    step = jax.jit(lambda state: attack.step(SMOOTH, state))
    state = jax.jit(lambda: attack.init(keys(BATCH), SMOOTH, images, labels))()
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {BATCH}
    np.testing.assert_array_equal(attack.finished(state), np.arange(BATCH) == 3)
    for done in range(attack.num_steps + 2):
        np.testing.assert_array_equal(state.steps, done)
        finished, before = np.asarray(attack.finished(state)), np.asarray(state.iterate)
        state = step(state)
        if done < attack.num_steps:
            assert same_bits(np.asarray(state.iterate)[finished], before[finished])
    for one, two in zip(attack.result(SMOOTH, state), whole, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    length = size_of(whole.images - images, "l2")
    np.testing.assert_array_equal(attack.succeeded(state), ~whole.is_right & (length <= 0.4))
    assert np.any(~whole.is_right) and np.any(whole.is_right)
    # Without a radius nothing has succeeded, though it is finished.
    unbounded = state._replace(problem=state.problem._replace(epsilon=jnp.full(BATCH, jnp.inf)))
    assert not np.any(attack.succeeded(unbounded)) and np.all(attack.finished(unbounded))


def test_a_given_start():
    logits_fn, images, labels, distances = two_classes()
    beyond = np.asarray(run(deepfool(overshoot=0.5), keys(BATCH), logits_fn, images, labels).images)
    start = images.copy()
    start[::2] = beyond[::2]
    found = run(deepfool(), keys(BATCH), logits_fn, images, labels, start=start)
    assert not np.any(found.is_right)
    # A start that fools the model is kept as it is.
    assert same_bits(found.images[::2], start[::2]) and np.all(found.score > 0)
    np.testing.assert_allclose(
        size_of(found.images - images, "l2")[1::2], 1.02 * (distances["l2"][1::2] + 1e-4), rtol=1e-3
    )


def test_bad_gradients_are_counted_and_do_no_harm():
    bad, good, images, labels, _ = poisoned_problem()
    found = run(deepfool(num_steps=4), keys(BATCH), bad, images, labels)
    healthy = run(deepfool(num_steps=4), keys(BATCH), good, images, labels)
    assert np.all(np.isfinite(found.images)) and np.all(np.isfinite(found.score))
    np.testing.assert_array_equal(found.images[[0, 7]], healthy.images[[0, 7]])
    np.testing.assert_array_equal(found.zero_gradients, [0, 4, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.nonfinite_gradients[1:5], [0, 4, 4, 4])
    assert np.all(found.is_right[1:5]) and same_bits(found.images[1:5], images[1:5])
    assert not found.is_right[5] and found.nonfinite_gradients[5] >= 1


def test_bfloat16_images():
    logits_fn, images, labels, distances = two_classes()
    found = run(deepfool(), keys(BATCH), logits_fn, images.astype(jnp.bfloat16), labels)
    assert found.images.dtype == jnp.bfloat16 and found.score.dtype == jnp.float32
    assert not np.any(found.is_right)
    length = size_of(found.images.astype(np.float32) - images, "l2")
    np.testing.assert_allclose(length, distances["l2"], atol=0.04)


def test_new_numbers_do_not_compile_again():
    traces = []

    def counted(weights, images):
        traces.append(images.shape)
        return tanh_network(weights, images)

    images, labels = smooth_problem()
    counting = jax.tree_util.Partial(counted, SMOOTH.args[0])
    run(deepfool(num_steps=2, epsilon=0.1), keys(BATCH), counting, images, labels)
    once = len(traces)
    run(deepfool(num_steps=2, epsilon=0.2, overshoot=0.5), keys(BATCH), counting, images, labels)
    assert len(traces) == once > 0


def test_vmap_over_models_and_shard_map():
    images, labels = smooth_problem()
    models = [SMOOTH, smooth_model(seed=2, scale=2.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    together = jax.jit(jax.vmap(lambda model: deepfool().run(keys(BATCH), model, images, labels)))(stacked)
    for number, model in enumerate(models):
        for one, other in zip(together, run(deepfool(), keys(BATCH), model, images, labels), strict=True):
            np.testing.assert_allclose(one[number], other, atol=1e-4)

    mesh, rows = Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data")

    def attacked(key, images, labels):
        return deepfool().run(key, SMOOTH, images, labels)

    spread = jax.jit(jax.shard_map(attacked, mesh=mesh, in_specs=(rows,) * 3, out_specs=rows, check_vma=True))
    alone = run(deepfool(), keys(BATCH), SMOOTH, images, labels)
    for one, other in zip(spread(keys(BATCH), images, labels), alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_passes_and_settings_that_make_no_sense():
    assert deepfool().passes == 1 + 50 * 11 and deepfool(num_steps=3, num_classes=2).passes == 10
    for settings, said in (
        ({"norm": "l1"}, "norms of deepfool are l2, linf"),
        ({"num_steps": 0}, "whole number from 1"),
        ({"num_classes": 1}, "whole number from 2"),
        ({"epsilon": -1.0}, "finite numbers from 0"),
        ({"overshoot": -0.1}, "finite numbers from 0"),
    ):
        with pytest.raises(ValueError, match=said):
            deepfool(**settings)
