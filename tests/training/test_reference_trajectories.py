"""Whole trainings of the reference, step by step: its margins, flags, losses and weights over 5 epochs.

All of it is made by the real defense, state and step; the test feeds the batches in the reference's order and reads the
rows of the state. float32 in the ordinary process; the last test runs this file again in a process of its own with
JAX_ENABLE_X64=1, where everything is float64. `-rP` prints the largest differences.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain import devices, models, tasks
from jax_advtrain.defenses import IMA
from jax_advtrain.training import optim
from jax_advtrain.training.state import shardings
from jax_advtrain.training.step import HostBatch, Recipe, init_state, make_step

X64 = jax.config.read("jax_enable_x64")
DTYPE, TAG = (jnp.float64, "f64") if X64 else (jnp.float32, "f32")
# float64: margins and weights to 1e-12. float32: measured 1e-7; labels on the boundary may legally differ.
ATOL, LOSS_ATOL, MAY_DIFFER = (1e-12, 1e-12, 0.0) if X64 else (1e-5, 1e-4, 0.01)

SETTINGS = {
    "traj_linf": {"norm": "linf", "delta": 0.02, "eps_max": 0.08, "start": "clean"},
    "traj_l2": {"norm": "l2", "delta": 0.25, "eps_max": 1.0, "start": "clean"},
    "traj_l2_randstart": {"norm": "l2", "delta": 0.25, "eps_max": 1.0, "start": "random"},
}
EPOCHS, NUM_SAMPLES, BATCH = 5, 256, 64


@dataclasses.dataclass(frozen=True)
class Recorded(IMA):
    """IMA that also keeps, as rows of the state, what it saw of each sample at its visit."""

    def init_rows(self, num_slots):
        seen = {name: jnp.zeros(num_slots) for name in ("hits", "right", "distance", "loss")}
        return {**super().init_rows(num_slots), **seen}

    def loss(self, model, batch_stats, batch, crafted, rows, method_state):
        found = super().loss(model, batch_stats, batch, crafted, rows, method_state)
        seen = {
            "hits": crafted.hits,
            "right": found.metrics["clean_accuracy"],
            "distance": crafted.distance,
            "loss": found.losses,
        }
        return found._replace(rows={**found.rows, **seen})


class Epoch(NamedTuple):
    """What is compared after an epoch."""

    rows: dict[str, np.ndarray]
    batch_losses: list[float]
    params: dict


@pytest.fixture(scope="module", autouse=True)
def float64_process(reference_dir):
    """This file in float64, started at once so that it runs beside the float32 tests."""
    if X64:
        yield None
        return
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-rP", "-p", "no:cacheprovider", "-k", "not own_process"]
    process = subprocess.Popen(
        command,
        # Without the costly passes of LLVM: half the time to compile.
        env=os.environ | {"JAX_ENABLE_X64": "1", "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def weights(vectors, epoch: int) -> dict:
    """The reference's MLP 784-32-10 in the network's own names."""

    def layer(number):
        return {
            name: jnp.asarray(vectors[f"{letter}{number}_epoch{epoch}_{TAG}"])
            for name, letter in (("kernel", "w"), ("bias", "b"))
        }

    return {"dense0": layer(0), "dense1": layer(1)}


def train(vectors, settings: dict) -> list[Epoch]:
    """The reference's 5 epochs by the real step, on one device and one shard."""
    mesh = devices.make_mesh(jax.devices()[:1])
    network = models.create({"name": "mlp", "hidden": (32,)}, 10, (28, 28, 1), seed=0)
    recipe = Recipe(
        graphdef=network.graphdef,
        task=tasks.CLASSIFICATION,
        defense=Recorded(**settings),
        optimizer=optim.build(
            {**optim.DEFAULTS, "name": "sgd", "learning_rate": 0.1, "momentum": 0.0}, steps_per_epoch=4, epochs=EPOCHS
        ),
        num_shards=1,
        seed=0,
    )

    def batch(epoch, first):
        rows = np.arange(first, first + BATCH)
        noise = vectors["u_int8"][epoch, rows, ..., None] / 128 if settings["start"] == "random" else None
        return HostBatch(
            images=devices.spread(mesh, vectors["x_u8"][..., None], rows),
            labels=devices.spread(mesh, vectors["y"].astype(np.int32), rows),
            ids=devices.spread(mesh, rows.astype(np.int32)),
            slots=devices.spread(mesh, rows.astype(np.int32)),
            unit_start=None if noise is None else devices.spread(mesh, noise.astype(DTYPE)),
        )

    state = init_state(
        recipe, weights(vectors, 0), network.batch_stats, num_slots=NUM_SAMPLES, num_classes=10, example=batch(0, 0)
    )
    state = jax.device_put(state, shardings(mesh, state))
    step = make_step(recipe, mesh, state, batch(0, 0))
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.sample_state))} == {jnp.dtype(DTYPE)}
    epochs = []
    for epoch in range(EPOCHS):
        losses = []
        for first in range(0, NUM_SAMPLES, BATCH):
            state, loss = step(state, batch(epoch, first), jnp.int32(epoch))
            losses.append(float(loss))
        epochs.append(Epoch(*jax.tree.map(np.array, (state.sample_state, losses, state.params))))
    return epochs


class Compared:
    """Largest differences, by the name of what was compared."""

    def __init__(self):
        self.largest: dict[str, float] = {}

    def close(self, name, ours, theirs, atol, may_differ=0.0):
        assert ours.shape == theirs.shape, name
        difference = np.abs(ours - theirs)
        assert np.mean(difference > atol) <= may_differ, (name, difference.max())
        agreeing = difference[difference <= atol]
        self.largest[name] = max(self.largest.get(name, 0.0), float(agreeing.max(initial=0)))


@pytest.mark.parametrize(
    "compact", [True, False] if X64 else [True], ids=lambda compact: "compact" * compact or "whole"
)
@pytest.mark.parametrize("name", SETTINGS)
def test_trajectory(reference_dir, name, compact):
    vectors = np.load(reference_dir / f"{name}.npz")
    compared = Compared()
    before = np.full(NUM_SAMPLES, SETTINGS[name]["delta"], DTYPE)
    for number, epoch in enumerate(train(vectors, {**SETTINGS[name], "compact": compact})):
        theirs = {
            key: vectors[f"{key}_{TAG}"][number]
            for key in ("E", "E_new", "flag1", "flag2", "advc", "yp", "batch_losses", "epoch_loss", "epoch_acc")
        }
        rows = epoch.rows
        right, hits = rows["right"] == 1, rows["hits"]
        compared.close("hits", hits, theirs["advc"], 0, MAY_DIFFER)
        compared.close("flag1", (hits == 0) * 1, theirs["flag1"], 0, MAY_DIFFER)
        compared.close("flag2", right * 1, theirs["flag2"], 0, MAY_DIFFER)
        np.testing.assert_array_equal(theirs["flag2"] == 1, theirs["yp"] == vectors["y"])
        estimate = np.where(right & (hits > 0), (before + rows["distance"]) / 2, before)
        compared.close("E_new", estimate, theirs["E_new"], ATOL, MAY_DIFFER)
        compared.close("E", rows["margin"], theirs["E"], ATOL, MAY_DIFFER)
        compared.close("clean accuracy", right.mean(), theirs["epoch_acc"][0], MAY_DIFFER + 1e-12)

        loss, loss1, loss2, loss3 = theirs["batch_losses"].T
        compared.close("batch loss", rows["loss"].reshape(-1, BATCH).mean(axis=1), loss, LOSS_ATOL)
        compared.close("loss told by the step", np.array(epoch.batch_losses), loss, 1e-6)  # it is kept in float32
        # At position 1 a wrong sample contributes ce/2, a right one ce/2 and, if hit, the attacked ce/2.
        parts = 2 * rows["loss"].reshape(-1, BATCH) / BATCH
        by_batch = right.reshape(-1, BATCH)
        compared.close("loss of the wrong", np.sum(parts * ~by_batch, axis=1), loss1, LOSS_ATOL)
        compared.close("loss of the right", np.sum(parts * by_batch, axis=1), loss2 + loss3, LOSS_ATOL)
        compared.close("epoch loss", np.mean(rows["loss"]), theirs["epoch_loss"][0], LOSS_ATOL)
        if f"w0_epoch{number + 1}_{TAG}" in vectors:
            jax.tree.map(
                lambda ours, reference: compared.close("weights", ours, np.asarray(reference), ATOL),
                epoch.params,
                weights(vectors, number + 1),
            )
        before = rows["margin"]
    assert "weights" in compared.largest
    # The vectors show what they are for: every case of the update occurs, the ceiling too.
    margins = vectors[f"E_{TAG}"]
    assert (margins == SETTINGS[name]["eps_max"]).any() and (np.diff(margins, axis=0) < 0).any()
    print(
        f"{name} {TAG} compact {compact}: "
        + ", ".join(f"{what} {value:.2g}" for what, value in compared.largest.items())
    )


@pytest.mark.slow
@pytest.mark.skipif(X64, reason="this is the float64 process")
def test_float64_in_its_own_process(float64_process):
    output, _ = float64_process.communicate(timeout=500)
    print(output)
    assert float64_process.returncode == 0, output
    assert "6 passed" in output
    assert "skipped" not in output
