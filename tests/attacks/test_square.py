"""The Square attack: its windows and schedule by themselves, then the search."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from toy_problems import FEATURES, SHAPE, keys, linear, pixels, run, same_bits, smooth_model, two_classes

from jax_advtrain import attacks
from jax_advtrain.attacks import square_windows
from jax_advtrain.attacks.square import square

NORMS = ("linf", "l2", "l1")
BATCH = 6
LABELS = np.arange(BATCH) % 3
changed = jax.jit(square_windows.changed, static_argnames="norm")
draws = jax.jit(square_windows.draws, static_argnums=2)
few = hypothesis.settings(max_examples=8, deadline=None, derandomize=True)


def lengths(perturbation, norm):
    """Norms of perturbations in float64, independently of the package."""
    flat = np.abs(np.asarray(perturbation, np.float64).reshape(len(perturbation), -1))
    return {"linf": flat.max(axis=1), "l2": np.sqrt((flat**2).sum(axis=1)), "l1": flat.sum(axis=1)}[norm]


def published_share(query, p_init):
    """The published table of the share p against the number of the query among 10,000."""
    for last, halvings in ((10, 0), (50, 1), (200, 2), (500, 3), (1000, 4), (2000, 5), (4000, 6), (6000, 7), (8000, 8)):
        if query <= last:
            return p_init / 2**halvings
    return p_init / 512


@pytest.mark.parametrize(("num_steps", "schedule"), [(5000, "rescaled"), (777, "rescaled"), (9001, "fixed")])
def test_window_sides_follow_the_published_table(num_steps, schedule):
    change = np.arange(num_steps)
    for norm in ("linf", "l2"):
        settings = {"num_steps": num_steps, "schedule": schedule, "image_shape": (32, 28), "norm": norm}
        found = jax.jit(functools.partial(square_windows.sides, **settings))(change, 0.8)
        query = [int(i / num_steps * 10_000) if schedule == "rescaled" else i for i in change]
        side = np.array([round((published_share(q, 0.8) * 32 * 28) ** 0.5) for q in query])
        if norm != "linf":
            side = np.minimum(np.maximum(side + (side % 2 == 0), 3), 27)
        np.testing.assert_array_equal(found, np.maximum(side, 1))
        assert len(np.unique(side)) >= 6


@pytest.mark.parametrize(("norm", "power", "order"), [("l2", 2, 2), ("l1", 4, 1)])
def test_windows_are_two_pyramids_of_nested_squares(norm, power, order):
    def pyramid(rows, columns):
        made = np.zeros((rows, columns))
        for ring in range(max(rows, columns) // 2 + 1):
            top, left = rows // 2 - ring, columns // 2 - ring
            made[max(top, 0) : rows // 2 + ring + 1, max(left, 0) : columns // 2 + ring + 1] += 1 / (ring + 1) ** power
        return made / np.linalg.norm(made.ravel(), order) if made.size else made

    for side in range(1, 12):
        expected = np.concatenate([pyramid(side // 2, side), -pyramid(side - side // 2, side)])
        expected /= np.linalg.norm(expected.ravel(), order)
        np.testing.assert_allclose(square_windows.bump(side, norm), expected, atol=1e-12)


def drawn(norm, count, number=0):
    return draws(keys(count), jnp.full(count, number), square_windows.num_draws(norm, 2))


def test_linf_windows_are_squares_at_the_ends_of_the_range_and_change_something():
    count, height, width = 600, 5, 4
    images = jnp.full((count, height, width, 2), 0.5)
    side = jnp.asarray(np.arange(count) % 3 + 1)
    held = images + 0.125
    found = changed(drawn("linf", count), images, held, jnp.full(count, 0.125), side, "linf")
    low = np.asarray(found == 0.375)
    assert np.all(low | np.asarray(found == held))
    corners = set()
    for sample, size in enumerate(np.asarray(side)):
        assert low[sample].any()
        rows, columns = np.nonzero(low[sample].any(axis=-1))
        for channel in range(2):
            part = low[sample, rows.min() : rows.min() + size, columns.min() : columns.min() + size, channel]
            assert part.shape == (size, size) and low[sample, ..., channel].sum() in (0, size**2)
            assert part.all() or not part.any()
        corners.add((size, rows.min(), columns.min()))
    # Every place inside the image is taken, the last row and column too.
    assert corners == {(s, i, j) for s in (1, 2, 3) for i in range(height - s + 1) for j in range(width - s + 1)}
    both = np.mean(low.any(axis=(1, 2)).sum(axis=1) == 2)
    assert abs(both - 0.5) < 0.08  # of the four pairs of ends, two go both down, counting the one that is turned


@pytest.mark.parametrize(("norm", "channels"), [("l2", 2), ("l1", 1)])
def test_two_windows_exchange_length_and_the_rest_stays(norm, channels):
    count, size, epsilon = 64, 9, 0.05
    images = jnp.full((count, size, size, channels), 0.5)
    noise = jax.random.uniform(jax.random.key(1), images.shape, minval=-1)
    held = images + 0.5 * epsilon * noise / lengths(noise, norm)[:, None, None, None]
    words = draws(keys(count), jnp.zeros(count, int), square_windows.num_draws(norm, channels))
    found = changed(words, images, held, jnp.full(count, epsilon), jnp.full(count, 3), norm)
    # What was not used of the radius is.
    np.testing.assert_allclose(lengths(found - images, norm), epsilon, rtol=2e-5)
    emptied = np.all(np.asarray(found == images), axis=-1)
    assert np.all(emptied.sum(axis=(1, 2)) <= 9) and emptied.sum() > 4 * count
    # All else that changed lies in one square of side 3.
    touched = np.any(np.abs(np.asarray(found - held)) > 1e-6, axis=-1) & ~emptied
    for one in touched:
        rows, columns = np.nonzero(one)
        assert np.ptp(rows) == np.ptp(columns) == 2 and len(rows) >= 8


@pytest.mark.parametrize("norm", NORMS)
def test_square_fails_below_the_distance_and_succeeds_above(norm):
    logits_fn, images, labels, distances = two_classes()
    matrix = np.asarray(logits_fn.args[0][0])
    normal = np.abs(matrix[:, 0] - matrix[:, 1])
    distance = (
        distances["linf"]
        * normal.sum()
        / {"linf": normal.sum(), "l2": np.linalg.norm(normal), "l1": normal.max()}[norm]
    )
    attack = square(norm=norm, epsilon=0.0, num_steps=300)
    below = run(attack, keys(8), logits_fn, images, labels, epsilon=0.999 * distance)
    # The search of a cube's corners ends at the best one; on the other balls it comes near.
    above = run(attack, keys(8), logits_fn, images, labels, epsilon=(1.001 if norm == "linf" else 2) * distance)
    assert np.all(below.is_right) and np.all(below.hits == 0) and np.all(below.score < 0)
    assert not np.any(above.is_right) and np.all(above.hits == 1) and np.all(above.score > 0)
    assert np.all(above.zero_gradients == 0) and np.all(above.nonfinite_gradients == 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_defeats_a_model_without_gradients_which_pgd_does_not(norm):
    smooth, images, labels, distances = two_classes()
    matrix, bias = smooth.args[0]
    stairs = jax.tree_util.Partial(lambda weights, images: jnp.round(20 * linear(weights, images)), (matrix, bias))
    epsilon = 2 * distances[norm]
    misled = run(
        attacks.pgd(norm=norm, epsilon=0.0, num_steps=5, start="clean"),
        keys(8),
        stairs,
        images,
        labels,
        epsilon=epsilon,
    )
    assert np.all(misled.is_right) and np.all(misled.zero_gradients == 5)
    found = run(square(norm=norm, epsilon=0.0, num_steps=300), keys(8), stairs, images, labels, epsilon=epsilon)
    assert not np.any(found.is_right)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
@few
@hypothesis.given(
    seed=st.integers(0, 2**31 - 1),
    radius=st.lists(st.sampled_from([0.0, 1e-6, 0.01, 0.3, 1.0, 5.0]), min_size=BATCH, max_size=BATCH),
)
def test_results_stay_in_each_samples_ball_and_in_the_box(norm, dtype, seed, radius):
    images, epsilon = pixels(BATCH, seed).astype(dtype), np.array(radius).astype(dtype)
    found = run(
        square(norm=norm, epsilon=0.1, num_steps=12), keys(BATCH, seed), smooth_model(), images, LABELS, epsilon=epsilon
    )
    assert found.images.shape == images.shape and found.images.dtype == dtype
    assert np.all((found.images >= 0) & (found.images <= 1))
    moved = lengths(found.images.astype(np.float32) - images.astype(np.float32), norm)
    ulp = float(jnp.finfo(dtype).eps)
    rounding = ulp * {"linf": 1, "l2": FEATURES**0.5, "l1": FEATURES}[norm]
    assert np.all(moved <= epsilon.astype(np.float32) * (1 + 4 * ulp) + rounding)
    still = np.array(radius) == 0
    assert same_bits(found.images[still], images[still])
    assert np.all(moved[np.array(radius) >= 0.01] > 0)


@jax.jit
def first(attack, key, logits_fn, images, labels, given):
    return attack.init(key, logits_fn, images, labels, **given)


@jax.jit
def step(attack, logits_fn, state):
    return attack.step(logits_fn, state)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_held_loss_never_falls_and_the_fooled_rest(norm):
    count, logits_fn = 24, smooth_model(scale=2.0)
    images = pixels(count)
    labels = np.argmax(logits_fn(images), axis=1)
    attack = square(norm=norm, epsilon=0.0, num_steps=25)
    epsilon = np.linspace(0, 0.5 if norm == "linf" else 1, count, dtype=np.float32)
    state = jax.device_get(first(attack, keys(count), logits_fn, images, labels, {"epsilon": epsilon}))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {count}
    assert not state.fooled.any() and np.all(np.isneginf(state.loss))
    start = state.held
    for done in range(attack.num_steps):
        after = jax.device_get(step(attack, logits_fn, state))
        np.testing.assert_array_equal(after.steps, done + 1)
        better = after.loss > state.loss
        changed = (after.held != state.held).any(axis=(1, 2, 3))
        assert np.all(better | (after.loss == state.loss))
        assert np.all(~changed | better | (after.fooled & ~state.fooled))
        assert not changed[state.fooled].any() and np.all(after.fooled >= state.fooled)
        if done == 0:
            assert same_bits(after.held, start)
        margin = attacks.logit_margin(logits_fn(after.held), labels)
        np.testing.assert_allclose(after.loss, margin, atol=1e-5)
        np.testing.assert_array_equal(after.fooled, np.asarray(margin) > 0)
        state = after
    assert 0 < state.fooled.sum() < count
    whole = run(attack, keys(count), logits_fn, images, labels, epsilon=epsilon)
    np.testing.assert_allclose(whole.images, state.held, atol=1e-6)
    np.testing.assert_array_equal(attack.succeeded(state), whole.hits)
    np.testing.assert_array_equal(whole.is_right, ~state.fooled)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_a_samples_result_depends_on_its_key_and_not_on_its_batch(norm):
    attack, model = square(norm=norm, epsilon=0.2, num_steps=12), smooth_model()
    images, key = pixels(BATCH, 1), keys(BATCH, 1)
    labels = np.argmax(model(images), axis=1)
    plain = run(attack, key, model, images, labels)
    order = np.array([3, 1, 5, 0, 2, 4])
    permuted = run(attack, key[order], model, images[order], labels[order])
    alone = run(attack, key[2:3], model, images[2:3], labels[2:3])
    for one, other, single in zip(plain, permuted, alone, strict=True):
        np.testing.assert_allclose(one[order], other, atol=1e-5)
        np.testing.assert_allclose(one[2:3], single, atol=1e-5)
    another = run(attack, keys(BATCH, 2), model, images, labels)
    # On so few pixels two searches may well end alike.
    assert np.sum((another.images != plain.images).any(axis=(1, 2, 3))) >= BATCH // 2


@pytest.mark.slow
def test_neither_jit_nor_waiting_for_the_last_sample_changes_a_result():
    attack, model, images = square(norm="l2", epsilon=0.2, num_steps=12), smooth_model(), pixels(BATCH, 1)
    labels = np.argmax(model(images), axis=1)
    plain = run(attack, keys(BATCH), model, images, labels)
    waiting = run(attacks.until_success(attack), keys(BATCH), model, images, labels)
    for found in (attack.run(keys(BATCH), model, images, labels), waiting):
        np.testing.assert_allclose(found.images, plain.images, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", pytest.param("l1", marks=pytest.mark.slow)])
def test_square_under_shard_map_and_vmap_and_with_new_numbers(norm):
    images, model, radii = pixels(BATCH), smooth_model(), np.array([0.0, 0.1, 0.4], np.float32)
    traces = []

    def attacked(attack, key, images, labels, epsilon):
        traces.append(images.shape)
        return attack.run(key, model, images, labels, epsilon=epsilon)

    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    spread = jax.jit(
        functools.partial(jax.shard_map, check_vma=True)(
            attacked,
            mesh=Mesh(np.array(jax.devices()[:1]), ("data",)),
            in_specs=(everywhere, rows, rows, rows, everywhere),
            out_specs=rows,
        )
    )
    attack = square(norm=norm, epsilon=0.1, num_steps=8)
    together = jax.jit(jax.vmap(lambda radius: attack.run(keys(BATCH), model, images, LABELS, epsilon=radius)))(radii)
    for number, radius in enumerate(radii):
        other = square(norm=norm, epsilon=float(radius), num_steps=8, p_init=0.8)
        for one, many, single in zip(
            run(attack, keys(BATCH), model, images, LABELS, epsilon=jnp.asarray(radius)),
            spread(other, keys(BATCH), images, LABELS, jnp.asarray(radius)),
            together,
            strict=True,
        ):
            np.testing.assert_allclose(one, many, atol=1e-5)
            np.testing.assert_allclose(one, single[number], atol=1e-5)
    assert len(traces) == 1


def test_targets_are_reached_and_labels_stay_the_truth():
    logits_fn = jax.tree_util.Partial(linear, (jnp.eye(6, 3), jnp.zeros(3)))
    flat = np.full((9, 6), 0.5, np.float32)
    truth, targets = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    flat[np.arange(9), truth] += 0.1
    for loss in (None, "lm"):
        attack = square(epsilon=0.06, num_steps=120, loss=loss)
        found = run(attack, keys(9), logits_fn, flat.reshape(9, *SHAPE), truth, targets=targets)
        np.testing.assert_array_equal(np.argmax(logits_fn(found.images), axis=1), targets)
        np.testing.assert_array_equal(found.is_right, targets == truth)
        assert np.all(found.hits == 1)
    near = run(attack, keys(9), logits_fn, flat.reshape(9, *SHAPE), truth, targets=targets, epsilon=0.049)
    np.testing.assert_array_equal(near.hits == 1, targets == truth)


def test_models_of_one_logit_are_attacked_as_those_of_two():
    two, images, labels, distances = two_classes()
    matrix, bias = two.args[0]
    one = jax.tree_util.Partial(
        lambda weights, images: linear(weights, images)[:, 0], (matrix[:, 1:] - matrix[:, :1], bias[1:] - bias[:1])
    )
    for loss in (None, "lmb"):
        attack = square(epsilon=0.0, num_steps=300, loss=loss)
        for times, right in ((0.999, True), (1.001, False)):
            found = run(attack, keys(8), one, images, labels, epsilon=times * distances["linf"])
            assert np.all(found.is_right == right)


def test_a_given_start_is_brought_into_the_ball():
    images, model = pixels(BATCH), smooth_model()
    for norm in ("l2", "l1"):
        attack = square(norm=norm, epsilon=0.2, num_steps=3)
        held = first(attack, keys(BATCH), model, images, LABELS, {"start": pixels(BATCH, seed=9)}).held
        moved = lengths(held - images, norm)
        assert np.all(moved <= 0.2 * (1 + 1e-5)) and np.all(moved > 0.1)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [("linf", (7,)), ("l2", (4, 3)), ("l2", (1, 1, 1)), ("l1", (11, 7, 2))],
)
def test_images_of_other_shapes_and_no_images(norm, shape):
    def logits_fn(images):
        flat = images.reshape(len(images), np.prod(shape))
        return jnp.stack([jnp.sum(flat, axis=1), -flat[:, 0]], axis=1)

    attack, model = square(norm=norm, epsilon=0.2, num_steps=5), jax.tree_util.Partial(logits_fn)
    images = np.random.default_rng(0).uniform(0.1, 0.9, size=(3, *shape)).astype(np.float32)
    found = run(attack, keys(3), model, images, np.zeros(3, int)).images
    assert found.shape == images.shape
    assert np.all(lengths(found - images, norm) <= 0.2 * (1 + 1e-5)) and np.all(lengths(found - images, norm) > 0.02)
    if len(shape) == 1:
        assert run(attack, keys(0), model, images[:0], np.zeros(0, int)).images.shape == (0, *shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l3"}, "norm is 'l3'"),
        ({"schedule": "cosine"}, "schedule is 'cosine'; give one of rescaled, fixed"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"p_init": 0.0}, "p_init is 0.0"),
        ({"p_init": 1.5}, "p_init is 1.5"),
        ({"epsilon": -0.1}, "epsilon is -0.1"),
        ({"loss": "hinge"}, "'hinge' is not known"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        square(**{"epsilon": 0.1} | settings)


def test_images_with_depth_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 3, 1\).*height, width, channels"):
        square(epsilon=0.1)(jax.random.key(0), lambda x: x, jnp.zeros((2, 3, 3, 3, 1)), jnp.zeros(2, jnp.int32))
