"""APGD: its schedule against the papers, its steps against a plain transcription."""

import fractions
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain.attacks.apgd import apgd
from jax_advtrain.attacks.apgd_schedule import equal_windows, halving_windows, shrinking_stages, table

NORMS = ("linf", "l2", "l1")
KINDS = (*NORMS, "l1 large radii")
BATCH = 6
LABELS = np.arange(BATCH) % 3
slowly = functools.partial(pytest.param, marks=pytest.mark.slow)


def attack_of(kind, epsilon=0.3, num_steps=8, **settings):
    return apgd(norm=kind.split()[0], large_radii=" " in kind, epsilon=epsilon, num_steps=num_steps, **settings)


def lengths(perturbation, norm):
    flat = np.abs(np.asarray(perturbation, np.float64)).reshape(len(perturbation), -1)
    return {"linf": flat.max(axis=1), "l2": np.sqrt((flat**2).sum(axis=1)), "l1": flat.sum(axis=1)}[norm]


# The schedule and the steps


def test_checks_are_where_the_papers_have_them():
    # Algorithm 1: p = 0, 0.22, then p + max(p - p_before - 0.03, 0.06).
    parts = [0.0, 0.22]
    while parts[-1] + max(parts[-1] - parts[-2] - 0.03, 0.06) <= 1:
        parts.append(parts[-1] + max(parts[-1] - parts[-2] - 0.03, 0.06))
    for num_steps in (100, 1000):
        checks = np.cumsum(halving_windows(num_steps)).tolist()
        assert checks == [round(part * num_steps) for part in parts[1:]]
    assert np.cumsum(halving_windows(100)).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    # With few steps whole numbers rule, as in the authors' code: 4, then one less each time, down to 1.
    assert halving_windows(20) == (4, 3, 2, *[1] * 11)
    assert halving_windows(1) == (1,)
    assert equal_windows(100) == (4,) * 25 and equal_windows(40) == (1,) * 40
    assert shrinking_stages(100) == ((3.0, 30), (2.0, 30), (1.0, 40))
    assert shrinking_stages(11) == ((3.0, 4), (2.0, 4), (1.0, 3))


def test_each_point_reads_its_row():
    rows = table(attack_of("linf", num_steps=20).stages)
    assert np.flatnonzero(rows.is_check).tolist() == [4, 7, *range(9, 21)]
    assert rows.window[[4, 7, 9, 10, 20]].tolist() == [4, 3, 2, 1, 1]
    assert rows.is_first.tolist() == [True] + 20 * [False] and rows.counts.all() and not rows.is_last.any()
    rows = table(attack_of("l1 large radii", num_steps=10).stages)
    assert rows.radius.tolist() == [3.0] * 4 + [2.0] * 4 + [1.0] * 5
    assert np.flatnonzero(rows.is_first).tolist() == [0, 4, 8] and np.flatnonzero(rows.is_last).tolist() == [3, 7]
    assert rows.counts.tolist() == [False] * 8 + [True] * 5


def project(image, perturbation, radius, norm):
    """One sample in float64; for "l1" by the sorted breaks of what is left of the radius, not by bisection."""
    if norm == "linf":
        return np.clip(image + np.clip(perturbation, -radius, radius), 0, 1)
    if norm == "l2":
        size = np.sqrt(np.sum(perturbation**2))
        return np.clip(image + perturbation * min(1, radius / max(size, 1e-300)), 0, 1)
    size, room = np.abs(perturbation), np.where(perturbation > 0, 1 - image, image)

    def spent(threshold):
        return np.clip(size - threshold, 0, room).sum()

    if spent(0) <= radius:
        return np.clip(image + perturbation, 0, 1)
    breaks = np.unique(np.concatenate([[0], size, np.maximum(size - room, 0)]))
    high = next(number for number, threshold in enumerate(breaks) if spent(threshold) <= radius)
    below, above = breaks[high - 1], breaks[high]
    threshold = below + (above - below) * (spent(below) - radius) / (spent(below) - spent(above))
    return image + np.sign(perturbation) * np.clip(size - threshold, 0, room)


def ascend_plainly(function, image, start, epsilon, num_steps, norm, rho=0.75):
    """Algorithm 1 of the paper for one sample: points, step sizes, losses, the best point and its loss."""
    loss, gradient = function(start)
    best, best_loss, best_gradient = start, loss, gradient
    step_size, window = 2 * epsilon, max(int(0.22 * num_steps), 1)
    checked_loss, halved, since, increases = loss, True, 0, 0
    point, before = start, start
    points, step_sizes = [start], [step_size]
    for step in range(num_steps):
        direction = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        ahead = project(image, point + step_size * direction - image, epsilon, norm)
        new_part = 1 if step == 0 else 0.75
        moved = point + new_part * (ahead - point) + (1 - new_part) * (point - before)
        point, before = project(image, moved - image, epsilon, norm), point
        points.append(point)
        last_loss = loss
        loss, gradient = function(point)
        if loss > best_loss:
            best, best_loss, best_gradient = point, loss, gradient
        since, increases = since + 1, increases + (loss > last_loss)
        if since == window:
            stuck = not halved and checked_loss == best_loss
            halved, checked_loss = increases <= rho * window or stuck, best_loss
            if halved:
                step_size, point, gradient = step_size / 2, best, best_gradient
            window = max(window - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1))
            since, increases = 0, 0
        step_sizes.append(step_size)
    return points, step_sizes, best, best_loss


def ascend_sparsely(function, image, start, epsilon, num_steps):
    """The same for one stage of l1-APGD."""
    moved = np.sum(np.abs(start - image) > 1e-15)
    loss, gradient = function(start)
    best, best_loss, best_gradient = start, loss, gradient
    step_size, point = epsilon, start
    points, step_sizes = [start], [step_size]
    for step in range(1, num_steps + 1):
        # In the paper the share moved / dimension / 1.5 of the coordinates.
        smallest = np.sort(np.abs(gradient))[-max(math.floor(fractions.Fraction(2 * int(moved), 3)), 1)]
        sparse = np.where(np.abs(gradient) >= smallest, np.sign(gradient), 0)
        point = project(image, point + step_size * sparse / np.abs(sparse).sum() - image, epsilon, "l1")
        points.append(point)
        loss, gradient = function(point)
        if loss > best_loss:
            best, best_loss, best_gradient = point, loss, gradient
        if step % max(int(0.04 * num_steps), 1) == 0:
            now = np.sum(np.abs(best - image) > 1e-15)
            if now / moved < 0.95:
                step_size, point, gradient = epsilon, best, best_gradient
            else:
                step_size = max(step_size / 1.5, epsilon / 10)
            moved = now
        step_sizes.append(step_size)
    return points, step_sizes, best, best_loss


def wavy(module, points, matrix):
    return module.sum(module.sin(points @ matrix), axis=-1)


def wavy_with_gradient(point, matrix):
    return wavy(np, point, matrix), matrix @ np.cos(point @ matrix)


@jax.jit
def trajectory(attack, logits_fn, images, start):
    """All points (num_steps + 1, batch, ...), step sizes and the last state."""

    def once(state, _):
        after = attack.step(logits_fn, state)
        return after, (after.iterate, after.rule.step_size)

    state = attack.init(jax.random.key(0), logits_fn, images, np.zeros(len(images), np.int32), start=start)
    last, (points, step_sizes) = jax.lax.scan(once, state, length=attack.num_steps)
    return jnp.concatenate([state.iterate[None], points]), step_sizes, attack.result(logits_fn, last)


IDENTITY = jax.tree_util.Partial(lambda images: images)


def never_fooled(outputs, labels):
    return outputs[:, 0] == outputs[:, 0]


@pytest.mark.parametrize(
    ("norm", "dimension", "num_steps"), [("linf", 1, 20), ("linf", 4, 100), slowly("l2", 4, 20), ("l2", 4, 100)]
)
def test_every_step_is_that_of_algorithm_1(norm, dimension, num_steps):
    batch, random = 6, np.random.default_rng(dimension)
    # Steeper waves would make the ascent chaotic, so that roundings grow.
    matrix = random.normal(size=(dimension, 3)) * 9 / dimension
    images = random.uniform(size=(batch, dimension))
    epsilon = np.array([0.01, 0.05, 0.1, 0.2, 0.3, 0.5])
    start = np.stack(
        [project(*sample, norm) for sample in zip(images, random.normal(size=images.shape), epsilon, strict=True)]
    )
    with jax.enable_x64(True):

        def loss(outputs, labels):
            return wavy(jnp, outputs, matrix)

        attack = apgd(
            norm=norm, epsilon=epsilon, num_steps=num_steps, loss=loss, is_right=never_fooled, score=loss, rho=0.75
        )
        points, step_sizes, found = jax.device_get(trajectory(attack, IDENTITY, images, start))
    assert points.dtype == np.float64
    halvings = 0
    for sample in range(batch):
        plain = ascend_plainly(
            lambda point: wavy_with_gradient(point, matrix),
            images[sample],
            start[sample],
            epsilon[sample],
            num_steps,
            norm,
        )
        np.testing.assert_allclose(points[:, sample], plain[0], atol=1e-9)
        # The size after a look at the last point is not used any more.
        np.testing.assert_allclose(step_sizes[:, sample], plain[1][:-1], rtol=1e-12)
        np.testing.assert_allclose(found.images[sample], plain[2], atol=1e-9)
        np.testing.assert_allclose(found.score[sample], plain[3], atol=1e-9)
        halvings += np.sum(np.diff(plain[1]) < 0)
    # Some checks halve and some do not, or the test would not see the conditions.
    assert 0 < halvings < batch * len(halving_windows(num_steps))


@pytest.mark.parametrize("large_radii", [False, True])
def test_every_sparse_step_is_that_of_l1_apgd(large_radii):
    batch, dimension, num_steps, random = 4, 30, 60, np.random.default_rng(0)
    matrix = random.normal(size=(dimension, 8)) * 4
    images = random.uniform(size=(batch, dimension))
    images = np.where(random.uniform(size=images.shape) < 0.2, np.round(images), images)
    epsilon = np.array([0.2, 0.5, 1.0, 3.0])
    noise = random.normal(size=images.shape)
    first = 3 * epsilon if large_radii else epsilon
    start = np.stack([project(*sample, "l1") for sample in zip(images, noise, first, strict=True)])
    with jax.enable_x64(True):

        def loss(outputs, labels):
            return wavy(jnp, outputs, matrix)

        attack = apgd(
            norm="l1",
            epsilon=epsilon,
            num_steps=num_steps,
            loss=loss,
            large_radii=large_radii,
            is_right=never_fooled,
            score=loss,
        )
        points, _, found = jax.device_get(trajectory(attack, IDENTITY, images, start))
    stages = shrinking_stages(num_steps) if large_radii else ((1, num_steps),)
    for sample in range(batch):
        plain, best, best_loss = [], start[sample], None
        for radius, steps in stages:
            reach = radius * epsilon[sample]
            begin = project(images[sample], best - images[sample], reach, "l1")
            stage = ascend_sparsely(
                lambda point: wavy_with_gradient(point, matrix), images[sample], begin, reach, steps
            )
            plain, best, best_loss = plain + stage[0], stage[2], stage[3]
        np.testing.assert_allclose(points[:, sample], plain, atol=1e-9)
        np.testing.assert_allclose(found.images[sample], best, atol=1e-9)
        np.testing.assert_allclose(found.score[sample], best_loss, atol=1e-9)
