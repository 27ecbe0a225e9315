"""The active set gives the answers of whole batches, wastes few passes, and goes on after it was killed.

Run as a script, this file is one evaluation in a process of its own (see `main`).
"""

import dataclasses
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain import attacks
from jax_advtrain.attacks.apgd import apgd
from jax_advtrain.attacks.square import square
from jax_advtrain.data import Dataset
from jax_advtrain.devices import make_mesh
from jax_advtrain.evaluation import active_set, state_file
from jax_advtrain.evaluation.attack_dataset import attack_dataset

COUNT, SIDE, EPSILON, SLOTS = 90, 6, 0.04, 16


def network(weights, images):
    first, second = weights
    return jnp.tanh((images.reshape(len(images), -1) - 0.5) @ first) @ second


def model(seed: int = 0) -> jax.tree_util.Partial:
    random = np.random.default_rng(seed)
    shapes = ((SIDE * SIDE, 24), (24, 3))
    return jax.tree_util.Partial(
        network, tuple(jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)
    )


def samples(count: int = COUNT) -> Dataset:
    """Images that the model gets right, but for every tenth."""
    random = np.random.default_rng(1)
    images = random.uniform(size=(count, SIDE, SIDE, 1)).astype(np.float32)
    labels = np.array(jnp.argmax(model()(jnp.asarray(images)), axis=-1), np.int32)
    labels[::10] = (labels[::10] + 1) % 3
    return Dataset("toy", images, labels, 7 * np.arange(count), ("a", "b", "c"), split="test")


def two_restarts() -> attacks.Attack:
    return attacks.restarts(attacks.pgd(epsilon=0.0, num_steps=10), 2)


ATTACKS = {
    "pgd": (attacks.pgd(epsilon=0.0, num_steps=20), True),
    "square": (square(epsilon=0.0, num_steps=60), True),
    "composed": (attacks.worst_of(attacks.noise(epsilon=0.0), apgd(epsilon=0.0, num_steps=12), two_restarts()), False),
}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return samples()


@pytest.fixture(scope="module", autouse=True)
def eight_devices():
    """The evaluation on eight devices, started at once so that it runs beside the other tests of this file."""
    process = started("devices", devices=8)
    yield process
    process.kill()
    process.communicate()


def attacked(attack, data, **given):
    settings = dict(epsilon=EPSILON, seed=5, batch_size=SLOTS, keep_images=True)
    return attack_dataset(attack, model(), data, given.pop("mesh", None), **(settings | given))


def assert_same(found, wanted):
    """All but the passes, which the clock has a say in."""
    for name, values in wanted._asdict().items():
        if name != "work":
            np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "composed" else []) for n in ATTACKS]
)
def test_verdicts_are_those_of_whole_batches(data, name):
    attack, is_single = ATTACKS[name]
    clean = attacked(None, data, epsilon=0.0)
    whole = attacked(attacks.until_success(attack), data, active_set=False)
    found = attacked(attack, data, active_set=True)
    right = clean.is_right
    assert 0 < (whole.is_right & right).sum() < right.sum() < COUNT
    np.testing.assert_array_equal(found.is_right, whole.is_right & right)
    # What is wrong already is out at once, with its clean image.
    np.testing.assert_array_equal(found.images[~right], data.images[~right])
    assert (found.distance[~right] == 0).all() and (found.winner[~right] == -1).all()
    np.testing.assert_array_equal(found.winner[right], whole.winner[right])
    np.testing.assert_array_equal(found.prediction[right], whole.prediction[right])
    if is_single:
        np.testing.assert_array_equal(found.images[right], whole.images[right])
    else:
        np.testing.assert_allclose(found.images[right], whole.images[right], atol=1e-3)
    assert whole.work is None and found.work.run > found.work.needed


def test_slots_order_and_known_clean_answers_change_nothing(data):
    attack = ATTACKS["pgd"][0]
    wanted = attacked(attack, data, active_set=True)
    order = np.random.default_rng(2).permutation(COUNT)
    turned = dataclasses.replace(data, **{name: getattr(data, name)[order] for name in ("images", "labels", "ids")})
    clean = attacked(None, turned)
    told = []
    found = attacked(attack, turned, active_set=True, batch_size=5, clean=clean, progress=told.append)
    for name in ("is_right", "prediction", "winner", "zero_gradients"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name)[order], err_msg=name)
    np.testing.assert_allclose(found.images, wanted.images[order], atol=1e-6)
    assert told == sorted(set(told)) and told[0] == (~clean.is_right).sum() and told[-1] == COUNT


def test_what_calls_learn_of_their_programs_is_shared_and_changes_no_answer(data):
    times = {}
    attack = ATTACKS["pgd"][0]
    wanted = attacked(attack, data, active_set=True, times=times)
    (learnt,) = times.values()
    assert learnt.step is not None and max(learnt.compiled) == SLOTS
    assert_same(attacked(attack, data, active_set=True, times=times), wanted)
    assert list(times.values()) == [learnt]


def test_attacks_that_rest_when_they_succeed_use_it_by_themselves(data):
    attack = ATTACKS["pgd"][0]
    assert attacked(attack, data).work is None
    assert attacked(attacks.until_success(attack), data).work is not None


def test_few_passes_are_wasted(monkeypatch):
    """Most samples fall at once, three never: what is run is little more than what the samples' own steps need."""
    monkeypatch.setattr(active_set, "COMPILATION_WEIGHT", 0.0)  # fewer slots whenever they do
    random, count = np.random.default_rng(3), 150
    vector = random.choice([-1.0, 1.0], SIDE * SIDE).astype(np.float32)
    lead = random.uniform(0.001, 0.004, count)  # less than a step
    lead[[2, 7, 11]] = 0.4  # of the distance from the middle of the box to the boundary, in L-inf
    images = (0.5 + lead[:, None] * vector).astype(np.float32).reshape(count, SIDE, SIDE, 1)

    def linear(vector, images):
        score = (images.reshape(len(images), -1) - 0.5) @ vector
        return jnp.stack([score, -score], axis=-1)

    logits_fn = jax.tree_util.Partial(linear, jnp.asarray(vector))
    points = Dataset("plane", images, np.zeros(count, np.int32), np.arange(count), ("a", "b"))
    attack = attacks.until_success(attacks.pgd(epsilon=0.0, num_steps=60, start="clean"))
    found = attack_dataset(attack, logits_fn, points, epsilon=0.1, batch_size=SLOTS)
    assert found.is_right.sum() == 3

    state = jax.jit(attack.init)(jax.random.key(0), logits_fn, images, points.labels, epsilon=0.1)
    step = jax.jit(lambda logits_fn, state: (attack.finished(state), attack.step(logits_fn, state)))
    steps = 0
    for _ in range(attack.num_steps):
        finished, state = step(logits_fn, state)
        steps += int((~np.asarray(finished)).sum())
    # Clean and attacked images are classified once each, and a step takes a forward and a backward pass.
    assert found.work.needed == 2 * count + 2 * steps
    assert found.work.run / found.work.needed < 1.3
    assert attack.passes * count > 5 * found.work.run


def test_sizes():
    assert active_set.sizes(16) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    for full in (1, 3, 5, 37, 256):
        found = active_set.sizes(full)
        assert found[0] == 1 and found[-1] == full
        assert all(larger <= 5 / 4 * smaller + 1 for smaller, larger in itertools.pairwise(found))


# --- The state file ---


def interrupted(attack, data, path, after, **given):
    """An evaluation that is stopped once so many samples have a verdict."""

    def stop(done):
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attacked(attack, data, state_file=path, progress=stop, **given)


def test_interrupted_whole_batches_go_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(state_file, "SECONDS", 0.0)
    attack, path, told = ATTACKS["pgd"][0], tmp_path / "state.npz", []
    interrupted(attack, data, path, after=SLOTS, active_set=False)
    found = attacked(attack, data, active_set=False, state_file=path, progress=told.append)
    assert told[0] == 2 * SLOTS and [file.name for file in tmp_path.iterdir()] == ["state.npz"]
    assert_same(found, attacked(attack, data, active_set=False))
    told.clear()
    assert_same(attacked(attack, data, active_set=False, state_file=path, progress=told.append), found)
    assert told == [COUNT]


def test_a_state_of_something_else_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(state_file, "SECONDS", 0.0)
    attack, path = ATTACKS["pgd"][0], tmp_path / "state.npz"
    interrupted(attack, data, path, after=SLOTS, active_set=False)
    before = path.read_bytes()
    other = attacks.pgd(epsilon=0.0, num_steps=20, loss="lm")
    brighter = dataclasses.replace(data, images=data.images / 2)
    cases = [
        (dict(seed=6), "seed: 5 there, 6 now"),
        (dict(epsilon=0.05), "epsilon: 0.04 there, 0.05 now"),
        (dict(norm="l2"), "norm: linf there, l2 now"),
        (dict(active_set=True), "active_set: False there, True now"),
        (dict(attack=other), "attack: "),
        (dict(data=brighter), "data: "),
        (dict(data=samples(50)), "no state of this evaluation"),
    ]
    for given, expected in cases:
        with pytest.raises(ValueError) as caught:
            attacked(
                given.pop("attack", attack),
                given.pop("data", data),
                **(dict(active_set=False) | given),
                state_file=path,
            )
        assert expected in str(caught.value) and "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(ValueError, match="weights: "):
        attack_dataset(
            attack, model(1), data, epsilon=EPSILON, seed=5, keep_images=True, state_file=path, active_set=False
        )
    assert path.read_bytes() == before
    path.write_bytes(before[:100])
    with pytest.raises(ValueError, match="is no state of an evaluation"):
        attacked(attack, data, active_set=False, state_file=path)


def test_descriptions_hold_no_addresses():
    import optax

    plain = attacks.pgd(epsilon=0.1, optimizer=optax.adam(0.1))
    told = state_file.describe(attacks.restarts(plain, 3))
    assert " at 0x" not in told and "num_restarts=3" in told and "epsilon=0.1" in told
    assert told == state_file.describe(attacks.restarts(attacks.pgd(epsilon=0.1, optimizer=optax.adam(0.1)), 3))
    assert told != state_file.describe(attacks.restarts(attacks.pgd(epsilon=0.1, optimizer=optax.adam(0.2)), 3))
    assert state_file.describe(jnp.arange(3)) != state_file.describe(jnp.arange(1, 4))


# --- Processes of their own ---


def main(what: str, *paths: str) -> None:
    data, attack = samples(), two_restarts()
    if what == "slowly":  # with a state file, and time enough to be killed
        state_file.SECONDS = 0.0
        attacked(attack, data, active_set=True, state_file=paths[0], progress=lambda done: time.sleep(0.1))
        return
    assert len(jax.devices()) == 8
    one, eight = make_mesh(jax.devices()[:1]), make_mesh()
    attack = attacks.worst_of(attacks.noise(epsilon=0.0), two_restarts())
    wanted = attacked(attack, data, mesh=one, active_set=True)
    for weight in (1.0, 0.0):
        active_set.COMPILATION_WEIGHT = weight
        found = attacked(attack, data, mesh=eight, active_set=True, batch_size=24)
        np.testing.assert_array_equal(found.is_right, wanted.is_right)
        np.testing.assert_array_equal(found.winner, wanted.winner)
        np.testing.assert_allclose(found.images, wanted.images, atol=1e-5)
    print("equal")


def started(*arguments: object, devices: int = 1) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        env=os.environ
        | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def passed(path: Path) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays["passed"]


# Of 270 passed stages the clean images make about 110; the first restart ends at about 200.
@pytest.mark.parametrize("moments", [(130,), pytest.param((120, 160, 215), marks=pytest.mark.slow)])
def test_killed_and_started_again(data, tmp_path, moments):
    path = tmp_path / "state.npz"
    for enough in moments:
        process = started("slowly", path)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and passed(path).sum() >= enough:
                break
            time.sleep(0.01)
        process.kill()
        output, _ = process.communicate()
        assert process.returncode == -9, output
        stages = passed(path)
        assert enough <= stages.sum() < 3 * COUNT, stages
    told = []
    found = attacked(two_restarts(), data, active_set=True, state_file=path, progress=told.append)
    assert len(told) < (stages < 3).sum() + 1 and told[0] >= (stages == 3).sum()
    assert_same(found, attacked(two_restarts(), data, active_set=True))


def test_eight_devices_give_the_same_answer(eight_devices):
    output, _ = eight_devices.communicate(timeout=600)
    assert eight_devices.returncode == 0 and output.endswith("equal\n"), output


if __name__ == "__main__":
    main(*sys.argv[1:])
