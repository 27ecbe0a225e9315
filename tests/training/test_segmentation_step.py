"""The training step on dense labels: real hippocampi, the same step, margins and IMA as for classification."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain import attacks, data, defenses, devices, models, segmentation
from jax_advtrain.data import slots
from jax_advtrain.evaluation import volumes
from jax_advtrain.models import functional
from jax_advtrain.training import optim
from jax_advtrain.training.state import TrainState, shardings
from jax_advtrain.training.step import PADDING, HostBatch, Recipe, init_state, make_step, means

pytestmark = pytest.mark.slow
TASK = segmentation.segmentation(0.6)
UNET = {"name": "unet", "width": 8, "levels": 3}
DELTA, RADIUS, BATCH = 0.1, 1.0, 32


class Trained(NamedTuple):
    """What some epochs gave: the last state, the network, means of the last epoch, margins by training sample."""

    state: TrainState
    graphdef: object
    metrics: dict
    margins: np.ndarray | None

    def logits_fn(self):
        return functional.logits_fn(self.graphdef, self.state.params, self.state.batch_stats)


@pytest.fixture(scope="module")
def hippocampi(hippocampus_dir):
    """Coronal slices of 10 cases to train on and of 6 to test."""
    return data.load(
        {
            "name": "hippocampus",
            "source": "decathlon",
            "data_dir": str(hippocampus_dir),
            "slices": 1,
            "image_size": 32,
            "test_size": 6,
            "validation_size": 1,
            "num_train": 11,
            "validation_from": "train",
        }
    )


def host_batch(train, layout, batch) -> HostBatch:
    """A batch of slots, shards by rows; what holds no sample is padding."""
    positions = slots.positions(layout, batch).reshape(-1)
    there = np.maximum(positions, 0)
    return HostBatch(
        images=jnp.asarray(train.images[there]),
        labels=jnp.asarray(train.labels[there]),
        ids=jnp.asarray(train.ids[there].astype(np.int32)),
        slots=jnp.asarray(np.where(positions < 0, PADDING, batch.reshape(-1)).astype(np.int32)),
    )


def trained(train, defense, epochs, network=None, learning_rate=3e-3) -> Trained:
    """Epochs of the training step on one device, as the loop runs them; the last batch is ragged."""
    network = network or models.create(UNET, train.num_classes, train.image_shape, 0)
    layout = slots.make_slots(len(train), 8, 0)
    batches = slots.epoch_batches(layout, BATCH, 0, 0)
    config = {**optim.DEFAULTS, "learning_rate": learning_rate, "clip_norm": 1.0}
    recipe = Recipe(
        graphdef=network.graphdef,
        task=TASK,
        defense=defenses.from_config(defense),
        optimizer=optim.build(config, steps_per_epoch=len(batches), epochs=epochs),
        num_shards=8,
        seed=0,
    )
    mesh = devices.make_mesh(jax.devices()[:1])
    example = host_batch(train, layout, batches[0])
    state = init_state(
        recipe, network.params, network.batch_stats, num_slots=layout.size, num_classes=3, example=example
    )
    state = jax.device_put(state, shardings(mesh, state), may_alias=False)
    step = make_step(recipe, mesh, state, example)
    metrics = {}
    for epoch in range(epochs):
        for batch in slots.epoch_batches(layout, BATCH, 0, epoch):
            state, loss = step(state, host_batch(train, layout, batch), jnp.int32(epoch))
            assert np.isfinite(loss)
        metrics = means(state.sums)
        assert float(state.sums["count"]) == len(train)
        state = state._replace(sums=jax.tree.map(jnp.zeros_like, state.sums))
    margins = None
    if "margin" in state.sample_state:
        margins = np.empty(len(train))
        margins[layout[layout >= 0]] = np.asarray(state.sample_state["margin"])[(layout >= 0).reshape(-1)]
    return Trained(state, network.graphdef, metrics, margins)


def dice_of_cases(logits_fn, test, radius=0.0) -> float:
    """Mean foreground Dice over cases in 3D, each from the predictions of its slices, attacked with the task's loss."""
    pgd = attacks.pgd(norm="l2", epsilon=radius, num_steps=10, loss=TASK.loss, is_right=TASK.is_right, score=TASK.score)

    @jax.jit
    def predicted(keys, images, labels):
        attacked = pgd(keys, logits_fn, images, labels) if radius else images
        return logits_fn(attacked).argmax(-1)

    keys = jax.random.split(jax.random.key(0), len(test))
    found = np.asarray(predicted(keys, jnp.asarray(test.images), jnp.asarray(test.labels)))
    cases = volumes.by_case(found, test.labels, test.ids, test.groups)
    return float(np.mean([volumes.dice(prediction, truth, 3) for _, prediction, truth in cases]))


@pytest.fixture(scope="module")
def standard(hippocampi):
    return trained(hippocampi.train, {"name": "standard"}, epochs=10)


def test_standard_training_finds_the_hippocampus(standard, hippocampi):
    clean = dice_of_cases(standard.logits_fn(), hippocampi.test)
    assert clean > 0.7
    assert dice_of_cases(standard.logits_fn(), hippocampi.test, RADIUS) < clean - 0.2


def test_ima_grows_margins_and_withstands_more(standard, hippocampi):
    """IMA from the standard weights, as `init_from` gives them."""
    train, test = hippocampi.train, hippocampi.test
    ima = {
        "name": "ima",
        "norm": "l2",
        "eps_max": 3.0,
        "delta": DELTA,
        "num_steps": 5,
        "refine_steps": 5,
        "attack_loss": "task",
        "inside_is_clean": False,
        "outside_is_final": False,
        "only_hit": False,
    }
    start = models.Network(standard.graphdef, standard.state.params, standard.state.batch_stats)
    found = trained(train, ima, epochs=10, network=start)
    foreground = (train.labels > 0).any(axis=(1, 2))
    assert 0.5 < foreground.mean() < 1
    np.testing.assert_allclose(found.margins[~foreground], DELTA)  # they keep what they started with
    moved = found.margins[foreground]
    assert moved.mean() > 3 * DELTA and moved.max() <= 3.0 and len(np.unique(moved)) > 20
    clean, attacked = (dice_of_cases(found.logits_fn(), test, radius) for radius in (0.0, RADIUS))
    before = dice_of_cases(standard.logits_fn(), test, RADIUS)
    assert attacked > before + 0.1 and clean > 0.65
