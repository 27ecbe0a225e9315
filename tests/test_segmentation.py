"""Segmentation as a task: Dice in closed form, what is right, and the attacks and IMA on dense outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_advtrain import attacks, segmentation
from jax_advtrain.defenses import Batch, Model
from jax_advtrain.defenses.ima import IMA

TASK = segmentation.segmentation(0.6)
LOSS, RIGHT, SCORE = (jax.jit(function) for function in (TASK.loss, TASK.is_right, TASK.score))
SURE = 40.0  # a score so much above the others that the softmax is one


def scores_of(prediction, classes=3):
    return SURE * jax.nn.one_hot(jnp.asarray(prediction), classes)


def drawn(seed, shape=(4, 6, 5), classes=3):
    rng = np.random.default_rng(seed)
    outputs = jnp.asarray(rng.normal(size=(*shape, classes)), jnp.float32)
    return outputs, jnp.asarray(rng.integers(0, classes, shape), jnp.int32)


def test_dice_in_closed_form():
    truth = jnp.array([[0, 1, 1, 1, 2, 2, 0, 0]])
    prediction = jnp.array([[0, 1, 1, 0, 0, 0, 1, 0]])
    # class 1: 2 in common, 3 + 3 in all; class 2: none in common, 2 + 0 in all
    expected = [[(2 * 2 + 1) / (6 + 1), (0 + 1) / (2 + 1)]]
    np.testing.assert_allclose(segmentation.dice(scores_of(prediction), truth), expected, rtol=1e-6)
    np.testing.assert_allclose(segmentation.soft_dice(scores_of(prediction), truth), np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(SCORE(scores_of(prediction), truth), 1 - np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(segmentation.dice(scores_of(truth), truth), [[1, 1]])
    empty = jnp.zeros((1, 8), jnp.int32)
    np.testing.assert_allclose(segmentation.dice(scores_of(empty), empty), [[1, 1]])


@given(st.integers(0, 2**31), st.sampled_from([(3, 7), (2, 4, 5), (2, 3, 4, 2)]))
@settings(max_examples=15, deadline=None)
def test_the_loss_is_what_a_loop_gives(seed, shape):
    outputs, labels = drawn(seed, shape)
    found = LOSS(outputs, labels)
    for n in range(shape[0]):
        z = np.asarray(outputs[n], np.float64).reshape(-1, 3)
        t = np.asarray(labels[n]).ravel()
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        entropy = -np.mean(np.log(p[np.arange(len(t)), t]))
        parts = [(2 * p[t == k, k].sum() + 1) / (p[:, k].sum() + np.sum(t == k) + 1) for k in (1, 2)]
        np.testing.assert_allclose(found[n], 1 - np.mean(parts) + entropy, rtol=1e-4)


def test_a_perfect_prediction_costs_nothing_and_a_worse_one_more():
    _, labels = drawn(0)
    losses = [LOSS(scale * scores_of(labels) / SURE, labels).mean() for scale in (SURE, 3.0, 0.0, -3.0)]
    assert losses[0] < 1e-5 and losses == sorted(losses)


def test_coarser_scores_are_weighed_by_halves():
    outputs, labels = drawn(3, (2, 8, 8))
    parts = (outputs, outputs[:, ::2, ::2], outputs[:, ::4, ::4])
    each = [LOSS(part, labels[:, :: 2**k, :: 2**k]) for k, part in enumerate(parts)]
    np.testing.assert_allclose(LOSS(parts, labels), (each[0] + each[1] / 2 + each[2] / 4) / 1.75, rtol=1e-5)
    np.testing.assert_array_equal(RIGHT(parts, labels), RIGHT(outputs, labels))
    np.testing.assert_array_equal(SCORE(parts, labels), SCORE(outputs, labels))


def test_what_is_right():
    truth = jnp.stack([jnp.arange(12) % 3, jnp.arange(12) % 3, jnp.zeros(12, int), jnp.arange(12) % 3])
    prediction = truth.at[1].set(0).at[2].set(1)  # the second misses all; the third's truth has no foreground
    outputs = scores_of(prediction).at[3, 0, 0].set(jnp.nan)
    np.testing.assert_array_equal(RIGHT(outputs, truth), [True, False, True, False])
    np.testing.assert_array_equal(TASK.takes_part(outputs, truth), [True, True, False, True])
    exact = float(segmentation.dice(scores_of(prediction), truth)[1].mean())
    assert segmentation.segmentation(exact).is_right(scores_of(prediction), truth)[1]
    assert not segmentation.segmentation(exact + 1e-3).is_right(scores_of(prediction), truth)[1]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, float("nan")])
def test_thresholds_out_of_range(threshold):
    with pytest.raises(ValueError, match="give a mean foreground Dice above 0, up to 1"):
        segmentation.segmentation(threshold)


def test_shapes_that_do_not_fit():
    outputs, labels = drawn(0)
    with pytest.raises(ValueError, match="one score a class is needed"):
        SCORE(outputs, labels[:, :-1])


# --- attacks and IMA, on a model whose boundary is known: a pixel is foreground where it is above a half ---

SIDE = 6


@jax.jit
def bright(images):
    """Class 1 where the pixel is above 0.5, by a score that grows with the distance."""
    return 20.0 * jnp.concatenate([0.5 - images, images - 0.5], axis=-1)


def discs(contrasts):
    """Images with a bright square, 0.5 + contrast on 0.5 - contrast, and their truth; contrast 0: dark and empty."""
    truth = np.zeros((len(contrasts), SIDE, SIDE), np.int32)
    images = np.zeros((len(contrasts), SIDE, SIDE, 1), np.float32)
    for n, contrast in enumerate(contrasts):
        if contrast:
            truth[n, 1:5, 1:5] = 1
        images[n, ..., 0] = 0.5 + contrast * (2.0 * truth[n] - 1) if contrast else 0.45
    return jnp.asarray(images), jnp.asarray(truth)


@jax.jit
def run(attack, images, truth):
    return attack.run(jax.random.key(0), bright, images, truth)


def pgd(**fields):
    settings = {"norm": "linf", "epsilon": 0.1, "num_steps": 10, **fields}
    return attacks.pgd(loss=TASK.loss, is_right=TASK.is_right, score=TASK.score, **settings)


def test_pgd_turns_what_lies_within_its_radius():
    images, truth = discs([0.05, 0.3, 0.0])
    found = run(pgd(), images, truth)
    np.testing.assert_array_equal(found.is_right, [False, True, True])
    assert found.hits[0] > 0 and found.hits[1] == 0
    assert found.hits[2] == 0  # no foreground: whatever is predicted there is no hit
    assert found.score[0] > found.score[1]
    assert float(jnp.abs(found.images - images).max()) <= 0.1 + 1e-6
    assert bool(jnp.any(bright(found.images)[2].argmax(-1) == 1))  # although there is something to be seen


def test_the_boundary_is_where_dice_falls_below_the_threshold():
    images, truth = discs([0.03, 0.05, 0.08])
    placed = attacks.on_boundary(pgd(start="clean"), refine_steps=15, placement="outside", compact=False)
    found = run(placed, images, truth)
    assert np.all(found.hits > 0) and not np.any(RIGHT(bright(found.images), truth))
    # Every pixel has the same distance to its threshold, so the mask turns as a whole where the noise is the contrast.
    np.testing.assert_allclose(found.distance, [0.03, 0.05, 0.08], atol=2e-3)


def test_it_is_the_same_on_volumes_and_in_l2():
    images, truth = discs([0.05, 0.3, 0.0])
    deep, deep_truth = (jnp.repeat(array[:, :, :, None], 2, axis=3) for array in (images, truth))
    flat = run(pgd(start="clean"), images, truth)
    found = run(pgd(start="clean"), deep, deep_truth)
    np.testing.assert_array_equal(found.is_right, flat.is_right)
    far = run(pgd(norm="l2", epsilon=1.0), images, truth)
    np.testing.assert_array_equal(far.is_right, [False, True, True])


def test_worst_of_and_restarts():
    images, truth = discs([0.05, 0.3, 0.0])
    found = run(attacks.worst_of(attacks.restarts(pgd(), 2), pgd(start="clean")), images, truth)
    np.testing.assert_array_equal(found.is_right, [False, True, True])


def visited(ima, images, truth, margin):
    """One visit of IMA with fixed weights."""
    model = Model(TASK, bright, bright, lambda stats, images, mask: (bright(images), stats))
    batch = Batch(
        images=images,
        labels=truth,
        keys=jax.random.split(jax.random.key(0), len(images)),
        valid=jnp.ones(len(images), bool),
        epoch=jnp.int32(0),
    )
    rows = {"margin": jnp.asarray(margin)}
    return jax.jit(lambda: ima.loss(model, {}, batch, ima.craft(model, batch, rows, {}), rows, {}))()


@pytest.mark.parametrize("only_hit", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_imas_margins(only_hit):
    images, truth = discs([0.05, 0.3, 0.0, 0.02])
    # The last is predicted empty, so wrong; it takes part all the same.
    images = images.at[3].set(0.48)
    ima = IMA(
        norm="linf",
        eps_max=0.5,
        delta=0.02,
        num_steps=10,
        attack_loss="task",
        placement="outside",
        inside_is_clean=False,
        outside_is_final=False,
        only_hit=only_hit,
        refine_steps=5,
        compact=False,
    )
    found = visited(ima, images, truth, [0.1, 0.1, 0.1, 0.1])
    margin = np.asarray(found.rows["margin"])
    assert 0.05 < margin[0] < 0.1  # hit: half-way to where the mask turns
    np.testing.assert_allclose(margin[1], 0.12)  # never hit: it grows by delta
    np.testing.assert_allclose(margin[2], 0.1)  # no foreground: it stays
    assert margin[3] < 0.1
    np.testing.assert_array_equal(found.metrics["clean_accuracy"], [1, 1, 1, 0])
    np.testing.assert_array_equal(found.metrics["attacked_accuracy"], [0, 1, 1, 0])
    assert np.all(np.isfinite(found.losses))
    # What has no foreground has no adversarial part.
    clean = (1 - ima.beta) * LOSS(bright(images), truth)
    np.testing.assert_allclose(found.losses[2], clean[2], rtol=1e-6)
    assert found.losses[0] > clean[0] and (found.losses[1] > clean[1]) == (not only_hit)


def test_classification_is_as_it_was():
    """Of a classifier those take part that are right."""
    from jax_advtrain import tasks

    outputs, labels = jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])
    for task in (tasks.CLASSIFICATION, tasks.BINARY):
        given = outputs if task is tasks.CLASSIFICATION else outputs[:, 0] - 1.5
        np.testing.assert_array_equal(task.takes_part(given, labels), task.is_right(given, labels))
