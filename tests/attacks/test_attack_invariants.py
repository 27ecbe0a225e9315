"""What holds for every attack, model, image and radius."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_problems import (
    FEATURES,
    SHAPE,
    keys,
    lengths,
    pixels,
    run,
    same_bits,
    smooth_model,
    tanh_network,
    two_classes,
)

from jax_advtrain import attacks

NORMS, STARTS = ("linf", "l2"), ("random", "clean")
BATCH = 6
LABELS = np.arange(BATCH) % 3
few = hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)
radii = st.lists(st.sampled_from([0.0, 1e-6, 0.01, 8 / 255, 0.3, 1.0, 5.0]), min_size=BATCH, max_size=BATCH)


def attack_of(norm, start, **settings):
    return attacks.pgd(norm=norm, start=start, epsilon=0.1, num_steps=3, **settings)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
@few
@hypothesis.given(seed=seeds, radius=radii)
def test_results_stay_in_each_samples_ball_and_in_the_box(norm, dtype, seed, radius):
    images = pixels(BATCH, seed).astype(dtype)
    epsilon = np.array(radius).astype(dtype)
    found = run(attack_of(norm, "random"), keys(BATCH, seed), smooth_model(), images, LABELS, epsilon=epsilon)
    assert found.images.shape == images.shape and found.images.dtype == dtype
    assert np.all((found.images >= 0) & (found.images <= 1))
    moved = lengths(found.images.astype(np.float32) - images.astype(np.float32), norm)
    # A pixel is rounded by half a unit in the last place; so is the radius.
    ulp = float(jnp.finfo(dtype).eps)
    rounding = ulp * (1 if norm == "linf" else FEATURES**0.5)
    assert np.all(moved <= epsilon.astype(np.float32) * (1 + 4 * ulp) + rounding)
    # Radius 0 returns the image bit for bit, beside samples that move.
    still = np.array(radius) == 0
    assert same_bits(found.images[still], images[still])
    assert np.all(moved[np.array(radius) >= 0.01] > 0)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero_returns_the_image_bit_for_bit(norm, start):
    images = pixels(BATCH)
    relative = attack_of(norm, start)
    absolute = attacks.pgd(norm=norm, start=start, epsilon=0.1, step_size=0.1, num_steps=3)
    nothing = np.zeros(BATCH, np.float32)
    for attack in (relative, absolute) if start == "clean" else (relative,):
        assert same_bits(run(attack, keys(BATCH), smooth_model(), images, LABELS, epsilon=nothing).images, images)


@few
@hypothesis.given(seed=seeds, order=st.permutations(range(BATCH)))
@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_permuted_gives_the_result_permuted(norm, seed, order):
    images, key = pixels(BATCH, seed), keys(BATCH, seed)
    order = np.array(order)
    epsilon = np.full(BATCH, 0.3, np.float32)
    plain = run(attack_of(norm, "random"), key, smooth_model(), images, LABELS, epsilon=epsilon)
    permuted = run(
        attack_of(norm, "random"),
        key[order],
        smooth_model(),
        images[order],
        LABELS[order],
        epsilon=epsilon,
    )
    for one, other in zip(plain, permuted, strict=True):
        np.testing.assert_allclose(one[order], other, atol=1e-5)


def composed():
    random = attacks.pgd(norm="linf", epsilon=0.3, num_steps=2)
    noise = attacks.noise(norm="linf", epsilon=0.3)
    return attacks.worst_of(noise, attacks.restarts(random, 2))


def test_a_samples_result_does_not_depend_on_its_batch():
    images, key = pixels(BATCH), keys(BATCH)
    whole = run(composed(), key, smooth_model(), images, LABELS)
    part = run(composed(), key[2:4], smooth_model(), images[2:4], LABELS[2:4])
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_allclose(one[2:4], other, atol=1e-5)
    boundary = attacks.on_boundary(attack_of("linf", "clean"))
    for one, other in zip(
        run(boundary, key, smooth_model(), images, LABELS),
        run(boundary, key[2:4], smooth_model(), images[2:4], LABELS[2:4]),
        strict=True,
    ):
        np.testing.assert_allclose(one[2:4], other, atol=1e-5)


def test_the_key_decides_the_random_start_and_nothing_else():
    images = pixels(BATCH, low=0.3, high=0.7)
    random, clean = attack_of("linf", "random"), attack_of("linf", "clean")
    radius = np.full(BATCH, 0.1, np.float32)
    first, again = (run(random, keys(BATCH), smooth_model(), images, LABELS, epsilon=radius) for _ in range(2))
    assert same_bits(first.images, again.images)
    first, other = (run(clean, keys(BATCH, s), smooth_model(), images, LABELS) for s in (0, 1))
    assert same_bits(first.images, other.images)
    # Samples of one key get different noise; old-style keys do as well as new ones.
    same_image = np.broadcast_to(images[:1], images.shape)
    init = jax.jit(lambda key: random.init(key, smooth_model(), same_image, LABELS).iterate)
    started = [init(key) for key in (jax.random.key(0), jax.random.key(1))]
    assert len(np.unique(np.concatenate(started), axis=0)) == 2 * BATCH
    assert same_bits(started[0], init(jax.random.PRNGKey(0)))


def test_jit_changes_nothing():
    images = pixels(BATCH)
    attack = attack_of("l2", "clean")
    plain = attack.run(keys(BATCH), smooth_model(), images, LABELS)
    for one, other in zip(plain, run(attack, keys(BATCH), smooth_model(), images, LABELS), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    # An attack may be compiled as it is, whatever its numbers are held in.
    attack = attacks.pgd(epsilon=jnp.full(BATCH, 0.1), num_steps=1, start="clean")
    np.testing.assert_allclose(
        jax.jit(attack)(jax.random.key(0), smooth_model(), images, LABELS),
        attack(jax.random.key(0), smooth_model(), images, LABELS),
        atol=1e-6,
    )


def test_new_numbers_and_weights_do_not_compile_again():
    traces = []

    def counted(weights, images):
        traces.append(images.shape)
        return tanh_network(weights, images)

    @jax.jit
    def attacked(attack, logits_fn, images, epsilon):
        return attack(jax.random.key(0), logits_fn, images, LABELS, epsilon=epsilon)

    def attack(epsilon, step_size, temperature):
        cold = attacks.with_temperature("ce", temperature)
        settings = {"epsilon": epsilon, "num_steps": 2, "start": "clean"}
        return attacks.worst_of(
            attacks.pgd(loss=cold, step_size=step_size, **settings),
            attacks.restarts(attacks.pgd(norm="l2", alpha=step_size, **settings), 2),
            attacks.noise(epsilon=epsilon),
        )

    results = []
    for number, (epsilon, step_size, temperature) in enumerate([(0.1, 0.05, 1.0), (0.2, 0.1, 0.2), (0.0, 1.0, 5.0)]):
        logits_fn = jax.tree_util.Partial(counted, smooth_model(seed=number).args[0])
        images = pixels(BATCH, seed=0)
        results.append(attacked(attack(epsilon, step_size, temperature), logits_fn, images, 2 * epsilon))
        if number == 0:
            after_the_first = len(traces)
    assert len(traces) == after_the_first > 0
    # The numbers did count, though.
    assert not np.allclose(results[0], results[1])
    assert same_bits(results[2], images)


@pytest.mark.parametrize("norm", NORMS)
def test_temperature_one_is_plain_pgd(norm):
    """Bit for bit; of "ce", which then ascends the soft logit margin in place of its softplus, the same direction."""
    images = pixels(BATCH, low=0.2, high=0.8)
    for loss in ("slm", "ce"):
        plain = run(attack_of(norm, "clean", loss=loss), keys(BATCH), smooth_model(), images, LABELS)
        for temperature in (1.0, jnp.ones(BATCH)):
            tempered = attack_of(norm, "clean", loss=attacks.with_temperature(loss, temperature))
            found = run(tempered, keys(BATCH), smooth_model(), images, LABELS)
            if loss == "slm":
                assert same_bits(found.images, plain.images)
            np.testing.assert_allclose(found.images, plain.images, atol=1e-6)


def test_temperatures_a_sample_and_a_class_equal_separate_runs():
    images, logits_fn = pixels(BATCH, low=0.2, high=0.8), smooth_model(scale=2.0)

    def found(temperature, targets=None, **settings):
        loss = attacks.with_temperature("ce", temperature, **settings)
        attack = attacks.pgd(norm="l2", epsilon=0.3, num_steps=3, loss=loss, start="clean")
        return np.asarray(run(attack, keys(BATCH), logits_fn, images, LABELS, targets).images)

    scale = np.array([0.1, 1.0, 10.0], np.float32)
    for targets in (None, (LABELS + 1) % 3):
        alone = np.stack([found(temperature, targets) for temperature in scale])
        by_class = found(scale, targets, per_class=True)
        np.testing.assert_allclose(by_class, alone[np.asarray(LABELS), np.arange(BATCH)], atol=1e-6)
        assert np.abs(alone[0] - alone[2]).max() > 1e-3
    each = found(scale[[0, 0, 1, 1, 2, 2]], targets)
    np.testing.assert_allclose(each, alone[[0, 0, 1, 1, 2, 2], np.arange(BATCH)], atol=1e-6)


def test_step_sizes_a_sample_equal_separate_runs():
    images = pixels(BATCH, low=0.4, high=0.6)
    step_size = np.linspace(0.01, 0.1, BATCH)

    def found(step_size):
        attack = attacks.pgd(epsilon=0.3, step_size=step_size, num_steps=2, start="clean")
        return run(attack, keys(BATCH), smooth_model(), images, LABELS).images

    np.testing.assert_allclose(found(step_size), [found(step)[row] for row, step in enumerate(step_size)], atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(0.02),
        optax.sgd(0.05, momentum=0.9),
        optax.chain(optax.sign_sgd(optax.linear_schedule(0.03, 0.001, 20))),
    ],
    ids=["adam", "momentum", "scheduled"],
)
def test_any_optax_transformation_stays_in_the_ball_and_succeeds(norm, optimizer):
    logits_fn, images, labels, distances = two_classes()
    attack = attacks.pgd(norm=norm, epsilon=0.0, num_steps=40, optimizer=optimizer, loss="lm", start="clean")
    # Adam's and the sign's directions are not the steepest of the L2 ball: the sphere is slid along to its top.
    epsilon = (1.001 if norm == "linf" else 1.1) * distances[norm]
    found = run(attack, keys(8), logits_fn, images, labels, epsilon=epsilon)
    assert not np.any(found.is_right)
    assert np.all(lengths(found.images - images, norm) <= epsilon * (1 + 1e-5))
    below = run(attack, keys(8), logits_fn, images, labels, epsilon=0.999 * distances[norm])
    assert np.all(below.is_right)


def test_an_inner_optimizer_keeps_dtypes_and_one_state_a_sample():
    attack = attacks.pgd(norm="l2", epsilon=0.2, num_steps=3, optimizer=optax.adam(0.05), start="clean")
    images = pixels(BATCH).astype(jnp.bfloat16)
    assert run(attack, keys(BATCH), smooth_model(), images, LABELS).images.dtype == jnp.bfloat16
    state = attack.init(keys(BATCH), smooth_model(), images, LABELS)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {BATCH}
    # A sample's steps do not feel the others' gradients.
    alone = run(attack, keys(1), smooth_model(), pixels(BATCH)[3:4], LABELS[3:4]).images
    together = run(attack, keys(BATCH), smooth_model(), pixels(BATCH), LABELS).images
    np.testing.assert_allclose(alone[0], together[3], atol=1e-6)


@pytest.mark.parametrize("placement", ["boundary", "inside"])
def test_compact_bisection_equals_the_uncompacted(placement):
    logits_fn, images, labels, distances = two_classes(batch=16)
    ascent = attacks.pgd(norm="l2", epsilon=0.0, num_steps=8, alpha=4, start="clean")
    plain = attacks.on_boundary(ascent, placement=placement)
    compact = attacks.on_boundary(ascent, placement=placement, compact=True)
    # 16 samples: the sizes are 2, 4, 8 and all.
    for hit in (0, 1, 2, 3, 4, 5, 8, 9, 16):
        reach = np.where(np.random.default_rng(hit).permutation(16) < hit, 1.5, 0.5)
        epsilon = reach * distances["l2"]
        wanted = run(plain, keys(16), logits_fn, images, labels, epsilon=epsilon)
        found = run(compact, keys(16), logits_fn, images, labels, epsilon=epsilon)
        assert np.sum(wanted.hits > 0) == hit
        for one, other in zip(wanted, found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_compact_bisection_of_targeted_attacks():
    logits_fn, images, labels = smooth_model(scale=3.0), pixels(5), np.arange(5) % 3
    ascent = attacks.pgd(norm="linf", epsilon=0.5, num_steps=5, start="clean")
    found = [
        run(attacks.on_boundary(ascent, compact=on), keys(5), logits_fn, images, labels, (labels + 1) % 3)
        for on in (False, True)
    ]
    assert np.any(found[0].hits > 0)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_float32_images_in_a_float64_process():
    with jax.enable_x64(True):
        images = pixels(BATCH)
        clean = attack_of("linf", "clean")
        for attack in (
            attacks.worst_of(clean, attacks.restarts(clean, 2)),
            attacks.on_boundary(attack_of("linf", "clean"), compact=True),
        ):
            found = run(attack, keys(BATCH), smooth_model(), images, np.arange(BATCH) % 3)
            assert found.images.dtype == jnp.float32
            assert found.hits.dtype == jnp.int32
        adam = attack_of("linf", "clean", optimizer=optax.adam(0.01))
        assert run(adam, keys(BATCH), smooth_model(), images, np.arange(BATCH) % 3).images.dtype == jnp.float32


def test_an_empty_batch_gives_an_empty_result():
    def logits_fn(images):
        return images.reshape(len(images), FEATURES)[:, :3]

    for attack in (composed(), attacks.on_boundary(attacks.pgd(epsilon=0.1, num_steps=2), compact=True)):
        found = run(
            attack, jax.random.key(0), jax.tree_util.Partial(logits_fn), jnp.zeros((0, *SHAPE)), jnp.zeros(0, jnp.int32)
        )
        assert found.images.shape == (0, *SHAPE)
