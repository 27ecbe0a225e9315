"""The final search finds the distance of a linear model from any image, and never loses what was found before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_hyperplane import many_classes, size_of
from toy_problems import keys, pixels, smooth_model

from jax_advtrain import attacks
from jax_advtrain.attacks import norms
from jax_advtrain.attacks.final_search import final_search
from jax_advtrain.attacks.minimum_norm import minimum_norm_problem, nearer, nothing_found

BATCH = 8


@jax.jit
def judged(logits_fn, images, labels, candidates, targets=None):
    """The problem, and the candidates as what a search has found."""
    problem = minimum_norm_problem(keys(BATCH), logits_fn, images, labels, targets, None)
    nearest = nothing_found(problem.images)
    for tried in (problem.images, candidates):
        distance = norms.length(tried - problem.images, "l2")
        nearest, _ = nearer(nearest, problem, tried, logits_fn(tried), distance)
    return problem, nearest


drawn = jax.jit(final_search, static_argnames="norm")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_of_a_linear_model_the_distance_is_found_from_any_adversarial_image(norm):
    logits_fn, images, labels, distances = many_classes(classes=5)
    away = pixels(200, seed=4)
    others = np.asarray(logits_fn(away)).argmax(1)
    candidates = np.stack([away[others != label][number] for number, label in enumerate(labels)])
    problem, nearest = judged(logits_fn, images, labels, candidates)
    found = drawn(logits_fn, problem, nearest, norm=norm)
    length, true = size_of(found.images - images, norm), distances[norm].min(1)
    np.testing.assert_allclose(length, true, rtol=2e-3)
    assert np.all(length >= true * (1 - 1e-4))
    assert np.all(np.asarray(attacks.predict(logits_fn(found.images))) != labels) and not np.any(found.is_right)
    np.testing.assert_allclose(found.score, attacks.logit_margin(logits_fn(found.images), labels), atol=1e-6)
    np.testing.assert_allclose(found.distance, length, rtol=1e-5)


def test_a_target_is_kept_and_so_is_the_margin_asked_for():
    logits_fn, images, labels, distances = many_classes(classes=5)
    farthest = np.where(np.isinf(distances["l2"]), -1, distances["l2"]).argmax(1).astype(np.int32)
    away = pixels(400, seed=4)
    others = np.asarray(logits_fn(away)).argmax(1)
    reached = np.array([np.any(others == target) for target in farthest])
    candidates = np.stack([away[others == t][0] if r else images[0] for t, r in zip(farthest, reached, strict=True)])
    problem, nearest = judged(logits_fn, images, labels, candidates, farthest)
    assert reached.sum() >= 4
    np.testing.assert_array_equal(np.isfinite(nearest.distance), reached)
    found = drawn(logits_fn, problem, nearest, norm="l2", confidence=0.05)
    logits = np.asarray(logits_fn(found.images))
    margins = np.sort(logits, axis=1)
    assert np.all(logits.argmax(1)[reached] == farthest[reached])
    moved = reached & (np.asarray(found.distance) < np.asarray(nearest.distance))
    assert moved.sum() >= 4 and np.all((margins[:, -1] - margins[:, -2])[moved] >= 0.05)
    # What holds no adversarial image stays as it is.
    np.testing.assert_array_equal(found.images[~reached], images[~reached])
    assert np.all(np.isinf(found.distance[~reached]))


def test_on_a_curved_model_nothing_is_lost_and_much_is_gained():
    model, images = smooth_model(scale=3.0), pixels(BATCH, seed=7)
    labels = np.asarray(attacks.predict(model(images)))
    away = pixels(200, seed=4)
    others = np.asarray(model(away)).argmax(1)
    candidates = np.stack([away[others != label][number] for number, label in enumerate(labels)])
    problem, nearest = judged(model, images, labels, candidates)
    found = drawn(model, problem, nearest, norm="l2")
    assert np.all(np.asarray(attacks.predict(model(found.images))) != labels)
    assert np.all((found.images >= 0) & (found.images <= 1))
    assert np.all(found.distance <= nearest.distance)
    assert np.median(found.distance / nearest.distance) < 0.7


def test_a_gradient_of_nan_moves_nothing():
    logits_fn, images, labels, _ = many_classes()
    broken = jax.custom_jvp(logits_fn)
    broken.defjvp(lambda primals, tangents: (logits_fn(*primals), jnp.nan * logits_fn(tangents[0])))
    candidates = np.stack([images[labels != label][0] for label in labels])
    problem, nearest = judged(logits_fn, images, labels, candidates)
    found = jax.jit(lambda problem, nearest: final_search(broken, problem, nearest, norm="l2"))(problem, nearest)
    assert np.all(np.isfinite(found.images)) and np.all(found.distance <= nearest.distance)
    assert np.all(np.asarray(attacks.predict(logits_fn(found.images))) != labels)
