"""Every registered defense in the real step: 8 devices as 1, padding counts for nothing, a batch in parts.

The first runs in a process of its own with 8 forced CPU devices (this file again). All of it is slow; a defense that is
registered is in it. Their real trainings are in tests/training/test_defense_trainings.py.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import assert_near, assert_same, host_batch, tiny

from jax_advtrain.defenses import DEFENSES, REMEDIES, Classwise, HeldOut

pytestmark = pytest.mark.slow
EIGHT = jax.device_count() == 8
on_eight = pytest.mark.skipif(not EIGHT, reason="runs in the process with 8 devices")
in_the_parent = pytest.mark.skipif(EIGHT, reason="this is the process with 8 devices")
# From this epoch on no warm-up, no burn-in.
EPOCH = jnp.int32(50)


def small(name, **more):
    """The defense with few steps and, where it has one, half the default radius; `compact` would part the devices."""
    fields = {field.name for field in dataclasses.fields(DEFENSES[name])}
    remedy = more.pop("remedy", None)
    wanted = {"num_steps": 3, "epsilon": 0.15, "compact": False, "refine_steps": 4, **more}
    if name in ("fast_at", "n_fgsm"):
        del wanted["num_steps"]
    method = DEFENSES[name](**{field: value for field, value in wanted.items() if field in fields})
    return method if remedy is None else REMEDIES[remedy](method)


def uneven(defense, method_state):
    """What a remedy makes of classes that fare unlike; before the first epoch it would change nothing."""
    if not isinstance(defense, Classwise):
        return method_state
    counts, right, robust = (np.array(one) for one in ([20, 20, 20], [19, 12, 18], [15, 4, 12]))
    told = HeldOut(20, counts, right, counts, robust)
    return jax.tree.map(np.float32, defense.epoch_end(jax.tree.map(np.array, method_state), told))


def steps(made, batch, num_devices=1, count=2):
    state, step = made.start(batch, num_devices)
    changed = state._replace(method_state=uneven(made.recipe.defense, state.method_state))
    state = jax.device_put(changed, jax.tree.map(lambda leaf: leaf.sharding, state), may_alias=False)
    losses = []
    for _ in range(count):
        state, loss = step(state, batch, EPOCH)
        losses.append(float(loss))
    return jax.tree.map(np.asarray, state), losses


EVERY = [(name, {}) for name in DEFENSES] + [(name, {"awp_gamma": 0.02}) for name in ("pgd_at", "trades", "mart")]
EVERY += [(name, {"remedy": remedy}) for name in ("pgd_at", "trades", "ima") for remedy in REMEDIES]
EVERY += [("trades", {"remedy": "cfa", "awp_gamma": 0.02})]
each = pytest.mark.parametrize(("name", "more"), EVERY, ids=str)


@on_eight
@each
def test_eight_devices_step_as_one(name, more):
    batch = host_batch(3, 4, num_shards=8)
    made = tiny(small(name, **more), "batch_norm", num_shards=8, num_slots=8 * 12)
    before = jax.tree.map(np.array, made.network.params)
    (one, one_losses), (eight, eight_losses) = (steps(made, batch, number) for number in (1, 8))
    assert_near(one, eight, atol=1e-5)
    np.testing.assert_allclose(one_losses, eight_losses, atol=1e-5)
    assert one.sums["count"] == 48
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), before, one.params))) > 1e-4


@in_the_parent
def test_all_of_them_in_a_process_with_eight_devices(tmp_path_factory):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "slow"]
    run = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1500
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout
    assert f"{len(EVERY)} passed" in run.stdout


@in_the_parent
@each
def test_padding_counts_for_nothing(name, more):
    """Weights, rows, metrics, BatchNorm averages: the same bits, whatever images, labels and ids fill the rows."""
    made = tiny(small(name, **more), "batch_norm")
    found = [steps(made, host_batch(5, 8, padding_seed=seed)) for seed in (0, 1)]
    assert np.mean(host_batch(5, 8, padding_seed=0).images) != np.mean(host_batch(5, 8, padding_seed=1).images)
    assert_same(*found)
    assert found[0][0].sums["count"] == 20
    slots = host_batch(5, 8).slots.reshape(2, 8)[:, :5] + np.array([[0], [12]])
    for rows, start in zip(found[0][0].sample_state.values(), made.recipe.defense.init_rows(24).values(), strict=True):
        moved = np.flatnonzero(rows != np.asarray(start))
        assert set(moved) <= set(slots.reshape(-1).tolist())


@in_the_parent
@each
def test_a_batch_in_parts_makes_the_same_step(name, more):
    batch = host_batch(5, 8)
    whole, parts = (steps(tiny(small(name, **more), accumulate=number), batch) for number in (1, 2))
    assert_near(whole, parts, atol=2e-5)
