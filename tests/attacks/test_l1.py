"""The L1 ball: its geometry against proofs of optimality, and the ascents in it against linear models."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from toy_problems import FEATURES, SHAPE, keys, linear, pixels, run, same_bits, smooth_model, tanh_network, two_classes

from jax_advtrain import attacks
from jax_advtrain.attacks import l1, norms

BATCH = 6
LABELS = np.arange(BATCH) % 3
few = hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)
radii = st.lists(st.sampled_from([0.0, 1e-6, 0.01, 0.3, 1.0, 2.0, 50.0]), min_size=BATCH, max_size=BATCH)

project = jax.jit(lambda images, perturbation, epsilon: norms.project(images, perturbation, epsilon, "l1"))
clip_to_ball = jax.jit(lambda perturbation, epsilon: norms.clip_to_ball(perturbation, epsilon, "l1"))
sparse = jax.jit(norms.sparse_ascent, static_argnums=2)


def size(perturbation):
    """L1 norms in float64."""
    return np.abs(np.asarray(perturbation, np.float64)).reshape(len(perturbation), -1).sum(axis=1)


def furthest(gain, room, radius):
    """max <gain, w> over |w|_1 <= radius and 0 <= w <= room: the best entries first, each to the end of its room."""
    order = np.argsort(-gain)
    gain, room = np.maximum(gain[order], 0), room[order]
    before = np.concatenate([[0.0], np.cumsum(room)[:-1]])
    return np.sum(gain * np.clip(radius - before, 0, room))


def furthest_in_ball_and_box(direction, image, radius):
    """max <direction, z - image> over the z in [0, 1] with |z - image|_1 <= radius."""
    return furthest(np.abs(direction), np.where(direction > 0, 1 - image, image), radius)


@few
@hypothesis.given(seed=seeds, radius=radii, scale=st.sampled_from([1e-3, 0.1, 1.0, 30.0]))
def test_the_projection_is_the_nearest_point_of_ball_and_box(seed, radius, scale):
    random = np.random.default_rng(seed)
    images = pixels(BATCH, seed)
    perturbation = (scale * random.normal(size=images.shape)).astype(np.float32)
    radius = np.array(radius, np.float32)
    found = np.asarray(project(images, perturbation, radius))
    assert np.all((found >= 0) & (found <= 1))
    rounding = 1e-6 * (1 + scale)
    assert np.all(size(found - images) <= radius + rounding)
    assert same_bits(found[radius == 0], images[radius == 0])
    again = project(images, found - images, radius)
    np.testing.assert_allclose(again, found, atol=1e-6)
    # z is the nearest point to u in a convex set if nowhere in the set <u - z, y - z> is positive; and if it is t at
    # most, then the nearest point is within sqrt(t) of z.
    for image, moved, z, limit in zip(images, perturbation, found, radius, strict=True):
        image, z = image.ravel().astype(np.float64), z.ravel().astype(np.float64)
        towards = image + moved.ravel() - z
        gap = furthest_in_ball_and_box(towards, image, limit) - towards @ (z - image)
        assert gap <= 5e-6 * (1 + scale) * (1 + scale)


@few
@hypothesis.given(seed=seeds, radius=radii, scale=st.sampled_from([1e-3, 0.1, 1.0, 30.0]))
def test_clipping_to_the_ball_gives_its_nearest_point(seed, radius, scale):
    random = np.random.default_rng(seed)
    perturbation = (scale * random.normal(size=(BATCH, *SHAPE))).astype(np.float32)
    radius = np.array(radius, np.float32)
    found = np.asarray(clip_to_ball(perturbation, radius))
    inside = size(perturbation) < radius * (1 - 1e-6)
    assert same_bits(found[inside], perturbation[inside])
    assert np.all(found[radius == 0] == 0)
    assert np.all(size(found) <= radius * (1 + 1e-6))
    # Here a second time changes no bit.
    assert same_bits(clip_to_ball(found, radius), found)
    for moved, z, limit in zip(perturbation, found, radius, strict=True):
        moved, z = moved.ravel().astype(np.float64), z.ravel().astype(np.float64)
        assert np.abs(moved - z).max() * limit - (moved - z) @ z <= 5e-6 * (1 + scale) * (1 + scale)


def test_a_known_projection_and_what_clipping_in_turn_would_lose():
    # Shrinking by 0.25 leaves 0.75 and 0.25; but the first pixel has room for 0.1 only, so the other keeps all.
    images, perturbation = jnp.array([[0.9, 0.5, 0.0]]), jnp.array([[1.0, 0.5, -3.0]])
    np.testing.assert_allclose(clip_to_ball(perturbation[:, :2], 1.0), [[0.75, 0.25]], atol=1e-7)
    np.testing.assert_allclose(project(images[:, :2], perturbation[:, :2], 1.0), [[1.0, 1.0]], atol=1e-7)
    np.testing.assert_allclose(project(images, perturbation, 0.4), [[1.0, 0.8, 0.0]], atol=1e-6)
    # Above: ball first and box last would stop at a length of 0 in the ball of radius 0.4.
    in_turn = jnp.clip(images + clip_to_ball(perturbation, 0.4), 0, 1) - images
    assert size(in_turn)[0] < 1e-6


def test_thresholds_are_exact_on_a_whole_image_and_in_every_precision():
    random = np.random.default_rng(0)
    images = random.uniform(size=(2, 32, 32, 3)).astype(np.float32)
    perturbation = (0.05 * random.normal(size=images.shape)).astype(np.float32)

    def reference(image, moved, radius):
        image, moved = image.astype(np.float64), moved.astype(np.float64)
        room, low, high = np.where(moved > 0, 1 - image, image), 0.0, np.abs(moved).max()
        for _ in range(60):
            middle = (low + high) / 2
            over = np.clip(np.abs(moved) - middle, 0, room).sum() > radius
            low, high = (middle, high) if over else (low, middle)
        return image + np.sign(moved) * np.clip(np.abs(moved) - high, 0, room)

    wanted = np.stack([reference(*both, 12.0) for both in zip(images, perturbation, strict=True)])
    found = project(images, perturbation, 12.0)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(size(found - images), 12.0, rtol=1e-5)
    half = project(images.astype(jnp.bfloat16), perturbation.astype(jnp.bfloat16), 12.0)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), wanted, atol=6e-3)
    with jax.enable_x64(True):
        double = project(images.astype(np.float64), perturbation.astype(np.float64), 12.0)
        assert double.dtype == np.float64
        np.testing.assert_allclose(double, wanted, atol=1e-12)


def test_huge_and_broken_perturbations_stay_their_own_trouble():
    images = pixels(5, low=0.2, high=0.8)
    perturbation = np.full(images.shape, 0.1, np.float32)
    perturbation[1] = np.nan
    perturbation[2] = 3e38
    perturbation[3] = -0.0
    perturbation[4, 0] = -1e-41
    found = np.asarray(project(images, perturbation, 0.3))
    np.testing.assert_allclose(found[0], images[0] + 0.05, atol=1e-6)
    assert np.all(np.isfinite(found[[0, 2, 3, 4]])) and np.all(size(found - images)[[0, 2, 3, 4]] <= 0.3 + 1e-6)
    np.testing.assert_array_equal(found[3], images[3])


def test_random_starts_are_uniform_in_the_ball():
    for shape in ((3,), (5, 2)):
        images = np.full((4000, *shape), 0.5, np.float32)
        draws = np.asarray(jax.jit(norms.uniform_in_ball, static_argnums=2)(keys(4000), images, "l1"))
        pixel_count, sizes = int(np.prod(shape)), size(draws)
        assert np.all(sizes <= 1 + 1e-6)
        assert abs(sizes.mean() - pixel_count / (pixel_count + 1)) < 0.01
        for radius in (0.4, 0.5 ** (1 / 3), 0.95):
            assert abs(np.mean(sizes < radius) - radius**pixel_count) < 0.03
        # On the sphere of radius 1 no pixel is before others: |x_i| / |x|_1 has the mean 1 / d, and both signs.
        np.testing.assert_allclose(
            (np.abs(draws).reshape(4000, -1) / sizes[:, None]).mean(0), 1 / pixel_count, atol=0.02
        )
        np.testing.assert_allclose((draws > 0).mean(axis=0), 0.5, atol=0.04)
        np.testing.assert_allclose(draws.mean(axis=0), 0, atol=0.03)


def test_the_direction_takes_a_share_of_the_pixels_that_may_move():
    gradient = jnp.array([[5.0, -4.0, 3.0, -2.0, 1.0, 0.0], [5.0, -4.0, 3.0, -2.0, 1.0, 0.0], [0.0] * 6, [1e-30] * 6])
    images = jnp.array([[0.5] * 6, [1.0, 0.0, 1.0, 0.5, 0.0, 1.0], [0.5] * 6, [0.5] * 6])
    third = [[0.5, -0.5, 0, 0, 0, 0], [0, 0, 0, -0.5, 0.5, 0], [0] * 6, [1 / 6] * 6]
    np.testing.assert_allclose(sparse(gradient, images, 1 / 3), third, rtol=1e-6)
    one = sparse(gradient, images, 0.01)
    np.testing.assert_allclose(one[:3], np.eye(6)[[0, 3, 0]] * np.array([[1], [-1], [0]]), rtol=1e-6)
    everything = sparse(gradient, images, 1.0)
    np.testing.assert_allclose(size(everything), [1, 1, 0, 1], rtol=1e-6)
    assert np.sum(everything[0] != 0) == 5 and np.sum(everything[1] != 0) == 2
    np.testing.assert_allclose(norms.steepest_ascent(gradient, "l1")[:3], np.eye(6)[[0, 0, 0]] * [[1], [1], [0]])
    counts = [l1.number_of_pixels(share, 100) for share in (1e-9, 0.01, 0.0101, 0.07, 1.0, 1)]
    assert counts == [1, 1, 2, 7, 100, 100]


def test_lengths_of_one():
    noise = jnp.array([[1.0, -3.0], [0.0, 0.0], [1e-30, 0.0], [2e37, -2e37]])
    np.testing.assert_allclose(norms.unit_length(noise, "l1"), [[0.25, -0.75], [0, 0], [1, 0], [0.5, -0.5]], rtol=1e-6)
    np.testing.assert_allclose(norms.length(noise[:1], "l1"), [4.0])


def distances(logits_fn, images):
    """L1 distances of a two-class linear model: gap / max|w|, the box being out of the way."""
    matrix, bias = (np.asarray(part, np.float64) for part in logits_fn.args[0])
    normal = matrix[:, 0] - matrix[:, 1]
    return np.abs(images.reshape(len(images), -1) @ normal + bias[0] - bias[1]) / np.abs(normal).max()


@pytest.mark.parametrize("start", ["clean", "random"])
def test_pgd_succeeds_exactly_above_the_distance(start):
    logits_fn, images, labels, _ = two_classes()
    true = distances(logits_fn, images)
    attack = attacks.pgd(norm="l1", epsilon=0.0, num_steps=40, loss="lm", start=start)
    below = run(attack, keys(8), logits_fn, images, labels, epsilon=0.999 * true)
    above = run(attack, keys(8), logits_fn, images, labels, epsilon=1.01 * true)
    assert np.all(below.is_right) and np.all(below.hits == 0)
    assert not np.any(above.is_right) and np.all(above.hits > 0)
    assert np.all(above.zero_gradients == 0) and np.all(above.nonfinite_gradients == 0)
    placed = run(attacks.on_boundary(attack), keys(8), logits_fn, images, labels, epsilon=1.5 * true, start=images)
    np.testing.assert_allclose(placed.distance, true, rtol=2e-3)
    np.testing.assert_allclose(placed.distance, size(placed.images - images), rtol=1e-5)


def test_pgd_finds_the_way_around_the_ends_of_the_box():
    # Of the best pixels many stand at the end already: a ball without the box would be of no use at all.
    random = np.random.default_rng(4)
    images, labels = pixels(8, seed=4), np.zeros(8, np.int32)
    weights = random.normal(size=(6, 1))
    flat = images.reshape(8, 6).astype(np.float64)
    radius = np.linspace(0.2, 2.5, 8)
    reach = np.array([furthest_in_ball_and_box(-weights[:, 0], *both) for both in zip(flat, radius, strict=True)])
    assert np.sum(reach < 0.98 * np.abs(weights).max() * radius) >= 4

    # Each sample's own bias puts its boundary just within reach, or just beyond it.
    def biased(values, images):
        matrix, bias = values
        return jnp.stack([images.reshape(8, -1) @ matrix + bias, jnp.zeros(8)], axis=1)

    attack = attacks.pgd(norm="l1", epsilon=radius, num_steps=60, alpha=6.0, loss="lm", start="clean")
    for share, right in ((0.98, False), (1.001, True)):
        bias = -(flat @ weights[:, 0]) + share * reach
        model = jax.tree_util.Partial(biased, (jnp.asarray(weights[:, 0], jnp.float32), jnp.asarray(bias, jnp.float32)))
        found = run(attack, keys(8), model, images, labels)
        np.testing.assert_array_equal(found.is_right, right)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@few
@hypothesis.given(seed=seeds, radius=radii)
def test_results_stay_in_each_samples_ball_and_in_the_box(dtype, seed, radius):
    images = pixels(BATCH, seed).astype(dtype)
    epsilon = np.array(radius).astype(dtype)
    attack = attacks.pgd(norm="l1", epsilon=0.1, num_steps=3, l1_share=0.3)
    found = run(attack, keys(BATCH, seed), smooth_model(), images, LABELS, epsilon=epsilon)
    assert found.images.shape == images.shape and found.images.dtype == dtype
    assert np.all((found.images >= 0) & (found.images <= 1))
    moved = size(found.images.astype(np.float32) - images.astype(np.float32))
    ulp = float(jnp.finfo(dtype).eps)
    # Each pixel is rounded by half a unit in the last place.
    assert np.all(moved <= epsilon.astype(np.float32) * (1 + 4 * ulp) + 3 * ulp)
    still = np.array(radius) == 0
    assert same_bits(found.images[still], images[still])
    assert np.all(moved[np.array(radius) >= 0.01] > 0)


@pytest.mark.slow
def test_a_samples_result_does_not_depend_on_its_batch_or_its_place():
    images, key, order = pixels(BATCH), keys(BATCH), np.array([3, 5, 0])
    attack = attacks.restarts(attacks.pgd(norm="l1", epsilon=0.5, num_steps=3, l1_share=0.3), 2)
    whole = run(attack, key, smooth_model(), images, LABELS)
    part = run(attack, key[order], smooth_model(), images[order], LABELS[order])
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_allclose(one[order], other, atol=1e-5)


def test_jit_changes_nothing_and_new_numbers_do_not_compile_again():
    traces = []

    def counted(weights, images):
        traces.append(images.shape)
        return tanh_network(weights, images)

    model = jax.tree_util.Partial(counted, smooth_model().args[0])
    images, found = pixels(BATCH), []
    for epsilon, alpha in ((0.3, 2.5), (1.0, 1.0), (0.0, 4.0)):
        attack = attacks.pgd(norm="l1", epsilon=epsilon, alpha=alpha, num_steps=3, start="clean", l1_share=0.3)
        found.append(run(attack, keys(BATCH), model, images, LABELS))
        seen = len(traces) if epsilon == 0.3 else seen
    assert len(traces) == seen > 0
    assert same_bits(found[2].images, images) and not np.allclose(found[0].images, found[1].images)
    attack = attacks.pgd(norm="l1", epsilon=0.3, num_steps=3, start="clean", l1_share=0.3)
    np.testing.assert_allclose(attack(keys(BATCH), model, images, LABELS), found[0].images, atol=1e-5)


@pytest.mark.slow
def test_vmap_over_radii_and_shard_map_equal_separate_runs():
    attack = attacks.pgd(norm="l1", epsilon=0.3, num_steps=3, l1_share=0.3)
    images, key, logits_fn = pixels(BATCH), keys(BATCH), smooth_model()

    def at(radius, key, images, labels):
        return attack.run(key, logits_fn, images, labels, epsilon=radius)

    radius = np.array([0.0, 0.3, 2.0], np.float32)
    together = jax.jit(jax.vmap(at, (0, None, None, None)))(radius, key, images, LABELS)
    rows = PartitionSpec("data")
    spread = jax.jit(
        functools.partial(jax.shard_map, check_vma=True)(
            at,
            mesh=Mesh(np.array(jax.devices()[:1]), ("data",)),
            in_specs=(PartitionSpec(), rows, rows, rows),
            out_specs=rows,
        )
    )
    for number, one in enumerate(radius):
        alone = run(attack, key, logits_fn, images, LABELS, epsilon=np.full(BATCH, one))
        np.testing.assert_allclose(together.images[number], alone.images, atol=1e-5)
        np.testing.assert_array_equal(together.hits[number], alone.hits)
        np.testing.assert_allclose(spread(one, key, images, LABELS).images, alone.images, atol=1e-5)


@pytest.mark.slow
def test_attacks_made_of_the_ascent_work_in_l1_too():
    logits_fn, images, labels, _ = two_classes()
    true = distances(logits_fn, images)
    reach = np.where(np.arange(8) % 2, 1.2, 0.9) * true
    for attack in (
        attacks.fgsm(norm="l1", epsilon=0.0, loss="lm"),
        attacks.ifgsm(norm="l1", epsilon=0.0, loss="lm"),
        attacks.restarts(attacks.pgd(norm="l1", epsilon=0.0, num_steps=20, loss="lm"), 2),
        attacks.until_success(attacks.pgd(norm="l1", epsilon=0.0, num_steps=20, loss="lm")),
    ):
        found = run(attack, keys(8), logits_fn, images, labels, epsilon=reach)
        np.testing.assert_array_equal(found.is_right, np.arange(8) % 2 == 0)
        assert np.all(size(found.images - images) <= reach * (1 + 1e-5))
    # One step of the whole radius moves one pixel, the one of largest weight.
    once = run(attacks.fgsm(norm="l1", epsilon=0.0, loss="lm"), keys(8), logits_fn, images, labels, epsilon=reach)
    assert np.all(np.sum(once.images != images, axis=(1, 2, 3)) == 1)
    np.testing.assert_allclose(size(once.images - images), reach, rtol=1e-5)


def test_bad_gradients_move_nothing_that_is_not_a_number():
    matrix = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)

    def broken(weights, images):
        # The root's gradient is infinite at 0; the second sample's gradient is zero, the third's is huge.
        return linear(weights, jnp.sqrt(images)) * jnp.array([1.0, 0.0, 1e30, 1.0])[:, None]

    images = pixels(4, low=0.3, high=0.7)
    images[0, 0] = 0
    model = jax.tree_util.Partial(broken, (jnp.asarray(matrix), jnp.zeros(3)))
    attack = attacks.pgd(norm="l1", epsilon=0.4, num_steps=4, loss="lm", start="clean", l1_share=0.5)
    found = run(attack, keys(4), model, images, np.zeros(4, np.int32))
    assert np.all(np.isfinite(found.images)) and np.all(size(found.images - images) <= 0.4 + 1e-6)
    np.testing.assert_array_equal(found.zero_gradients, [0, 4, 0, 0])
    assert found.nonfinite_gradients[0] >= 1 and np.all(found.nonfinite_gradients[1:] == 0)
    assert same_bits(found.images[1], images[1])
    assert np.all(size(found.images - images)[[0, 2, 3]] > 0.3)


def test_noise_has_length_epsilon():
    logits_fn, images, labels, _ = two_classes()
    epsilon = np.linspace(0, 0.5, 8).astype(np.float32)
    for distribution in ("uniform", "gaussian"):
        attack = attacks.noise(norm="l1", epsilon=0.1, distribution=distribution)
        found = run(attack, keys(8), logits_fn, images, labels, epsilon=epsilon)
        np.testing.assert_allclose(size(found.images - images), epsilon, rtol=1e-4, atol=1e-6)
        assert same_bits(found.images[0], images[0])


def test_an_empty_batch_gives_an_empty_result():
    attack = attacks.pgd(norm="l1", epsilon=0.1, num_steps=2)
    model = jax.tree_util.Partial(lambda images: images.reshape(len(images), FEATURES)[:, :3])
    found = run(attack, jax.random.key(0), model, jnp.zeros((0, *SHAPE)), jnp.zeros(0, jnp.int32))
    assert found.images.shape == (0, *SHAPE)
