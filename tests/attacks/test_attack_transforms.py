"""Attacks under vmap, shard_map and the stepwise protocol, and the memory that they take."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_problems import compiled, keys, pixels, run, same_bits, smooth_model

from jax_advtrain import attacks

BATCH = 6
LABELS = np.arange(BATCH) % 3


@pytest.fixture(scope="module", autouse=True)
def eight_devices():
    """The shard_map script, started at once so that it runs beside the other tests of this file."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("shard_map_script.py"))],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_vmap_over_models_equals_separate_runs():
    attack = attacks.pgd(norm="l2", epsilon=0.3, num_steps=3, start="clean")
    models = [smooth_model(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    images = pixels(BATCH)
    together = jax.jit(jax.vmap(lambda model: attack.run(keys(BATCH), model, images, LABELS)))(stacked)
    for number, model in enumerate(models):
        alone = run(attack, keys(BATCH), model, images, LABELS)
        np.testing.assert_allclose(together.images[number], alone.images, atol=1e-5)
        np.testing.assert_array_equal(together.hits[number], alone.hits)


@pytest.mark.parametrize("compact", [False, True])
def test_vmap_over_radii_equals_separate_runs(compact):
    ascent = attacks.pgd(norm="linf", epsilon=0.3, num_steps=3, start="clean")
    attack = attacks.on_boundary(ascent, compact=compact)
    images, radii = pixels(BATCH), jnp.array([0.0, 0.1, 0.5])

    def at(radius):
        return attack.run(keys(BATCH), smooth_model(), images, LABELS, epsilon=radius)

    together = jax.jit(jax.vmap(at))(radii)
    for number, radius in enumerate(radii):
        alone = run(attack, keys(BATCH), smooth_model(), images, LABELS, epsilon=radius)
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one[number], other, atol=1e-5)


def test_vmap_over_the_attacks_own_numbers():
    attack = attacks.pgd(epsilon=jnp.array([0.1, 0.2]), step_size=jnp.array([0.1, 0.05]), num_steps=3, start="clean")
    images = pixels(BATCH)
    together = jax.jit(jax.vmap(lambda attack: attack(keys(BATCH), smooth_model(), images, LABELS)))(attack)
    for number, (epsilon, step_size) in enumerate([(0.1, 0.1), (0.2, 0.05)]):
        alone = attacks.pgd(epsilon=epsilon, step_size=step_size, num_steps=3, start="clean")
        np.testing.assert_allclose(
            together[number], run(alone, keys(BATCH), smooth_model(), images, LABELS).images, atol=1e-6
        )


@jax.jit
def first(attack, key, logits_fn, images, labels):
    return attack.init(key, logits_fn, images, labels)


@jax.jit
def step(attack, logits_fn, state):
    return attack.step(logits_fn, state)


@jax.jit
def result(attack, logits_fn, state):
    return attack.result(logits_fn, state)


def test_init_step_result_equal_run():
    attack = attacks.on_boundary(attacks.pgd(norm="l2", epsilon=0.3, num_steps=4, start="clean"))
    images, logits_fn = pixels(BATCH), smooth_model()
    state = first(attack, keys(BATCH), logits_fn, images, LABELS)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {BATCH}
    for done in range(attack.num_steps):
        np.testing.assert_array_equal(state.ascent.steps, done)
        state = step(attack, logits_fn, state)
    for one, other in zip(
        result(attack, logits_fn, state), run(attack, keys(BATCH), logits_fn, images, LABELS), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_finished_sample_may_give_its_slot_to_the_next():
    attack = attacks.pgd(norm="linf", epsilon=0.3, num_steps=4)
    images, key, logits_fn = pixels(BATCH + 1), keys(BATCH + 1), smooth_model()
    labels = np.arange(BATCH + 1) % 3
    state = first(attack, key[:BATCH], logits_fn, images[:BATCH], labels[:BATCH])
    for _ in range(2):
        state = step(attack, logits_fn, state)
    fresh = first(attack, key[1:], logits_fn, images[1:], labels[1:])
    state = jax.jit(lambda *states: jax.tree.map(lambda old, new: old.at[2].set(new[-1]), *states))(state, fresh)
    np.testing.assert_array_equal(state.steps, [2, 2, 0, 2, 2, 2])
    for _ in range(4):
        state = step(attack, logits_fn, state)
    whole = run(attack, key[1:], logits_fn, images[1:], labels[1:])
    np.testing.assert_allclose(result(attack, logits_fn, state).images[2], whole.images[-1], atol=1e-6)


def test_memory_does_not_grow_with_the_number_of_steps():
    images = jnp.zeros((32, 28, 28, 1))

    def convolved(weights, images):
        hidden = jax.lax.conv_general_dilated(
            images, weights[0], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(hidden).reshape(len(images), -1) @ weights[1]

    logits_fn = jax.tree_util.Partial(convolved, (jnp.ones((3, 3, 1, 8)), jnp.ones((14 * 14 * 8, 10))))
    sizes = []
    for num_steps in (1, 20, 100):
        attack = attacks.pgd(norm="l2", epsilon=0.3, num_steps=num_steps, start="clean")
        program = compiled.lower(attack, jax.random.key(0), logits_fn, images, np.zeros(32, np.int32)).compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    assert sizes[0] > images.nbytes
    assert sizes[1] == sizes[2]
    # XLA unrolls a loop of one step, which spares it the loop's own counters.
    assert sizes[1] <= 1.01 * sizes[0], sizes


def test_an_attack_is_a_pytree_of_its_numbers():
    attack = attacks.pgd(epsilon=0.1, alpha=2.0, loss=attacks.with_temperature("ce", 0.5), start="clean")
    assert sorted(jax.tree.leaves(attack)) == [0.1, 0.5, 2.0]
    wider = jax.tree.map(lambda number: 2 * number, attack)
    assert (wider.epsilon, wider.alpha, wider.loss.temperature, wider.norm) == (0.2, 4.0, 1.0, "linf")
    assert "epsilon=0.1" in repr(attack)
    images = pixels(BATCH)
    assert isinstance(attacks.restarts(attack, 2), attacks.Attack)
    given = run(attack, keys(BATCH), smooth_model(), images, LABELS, epsilon=0.2)
    held = run(dataclasses.replace(attack, epsilon=0.2), keys(BATCH), smooth_model(), images, LABELS)
    np.testing.assert_allclose(given.images, held.images, atol=1e-6)
    assert not same_bits(given.images, images)


def test_shard_map_on_eight_devices_equals_one(eight_devices):
    output, _ = eight_devices.communicate(timeout=300)
    assert eight_devices.returncode == 0, output
    assert output.count("equal: ") == 7
