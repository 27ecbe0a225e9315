"""A training step small enough to be checked by hand: 6x6 images, 3 classes."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_advtrain import devices, models, tasks
from jax_advtrain.models import Network
from jax_advtrain.training import optim
from jax_advtrain.training.state import TrainState, shardings
from jax_advtrain.training.step import PADDING, HostBatch, Recipe, init_state, make_step

IMAGE, CLASSES = (6, 6, 1), 3
MODELS = {
    "mlp": {"name": "mlp", "hidden": (8,)},
    "batch_norm": {"name": "small_cnn", "channels": (4,), "hidden": (8,), "batch_norm": True},
}
SGD = {**optim.DEFAULTS, "name": "sgd", "learning_rate": 0.1, "momentum": 0.0}


class Tiny(NamedTuple):
    """A network and its training program."""

    network: Network
    recipe: Recipe
    num_slots: int

    def start(self, batch: HostBatch, num_devices: int = 1) -> tuple[TrainState, Any]:
        """A fresh state, none of whose buffers is shared, and the step for batches of that shape."""
        mesh = devices.make_mesh(jax.devices()[:num_devices])
        state = init_state(
            self.recipe,
            self.network.params,
            self.network.batch_stats,
            num_slots=self.num_slots,
            num_classes=CLASSES,
            example=batch,
        )
        state = jax.device_put(state, shardings(mesh, state), may_alias=False)
        # One jitted function for each program, or every test would compile its own.
        key = (id(self.recipe.optimizer), num_devices)
        if key not in _STEPS:
            _STEPS[key] = make_step(self.recipe, mesh, state, batch)
        return state, _STEPS[key]


_STEPS: dict[tuple[int, int], Any] = {}


@functools.cache
def tiny(defense, model="mlp", *, num_shards=2, num_slots=24, ema_decay=None, accumulate=1) -> Tiny:
    """The same program for the same arguments."""
    network = models.create(MODELS[model], CLASSES, IMAGE, seed=0)
    recipe = Recipe(
        graphdef=network.graphdef,
        task=tasks.CLASSIFICATION,
        defense=defense,
        optimizer=optim.build(SGD, steps_per_epoch=2, epochs=2),
        num_shards=num_shards,
        seed=3,
        ema_decay=ema_decay,
        accumulate=accumulate,
    )
    return Tiny(network, recipe, num_slots)


def host_batch(valid_slots, rows_per_shard, *, num_shards=2, padding_seed=0) -> HostBatch:
    """A batch whose shards hold samples in the first `valid_slots` rows; what pads it is drawn from `padding_seed`."""

    def rows(seed, draw):
        rng = np.random.default_rng(seed)
        return draw(rng, (num_shards, rows_per_shard))

    def drawn(draw):
        values, padding = rows(1, draw), rows((padding_seed, 99), draw)
        values[:, valid_slots:] = padding[:, valid_slots:]
        return values.reshape(num_shards * rows_per_shard, *values.shape[2:])

    slots = np.full((num_shards, rows_per_shard), PADDING, np.int32)
    slots[:, :valid_slots] = np.random.default_rng(2).permuted(np.tile(np.arange(12), (num_shards, 1)), axis=1)[
        :, :valid_slots
    ]
    return HostBatch(
        images=drawn(lambda rng, shape: rng.integers(0, 256, (*shape, *IMAGE), np.uint8)),
        labels=drawn(lambda rng, shape: rng.integers(0, CLASSES, shape, np.int32)),
        ids=drawn(lambda rng, shape: rng.integers(0, 1000, shape, np.int32)),
        slots=slots.reshape(-1),
    )


def assert_same(one, other) -> None:
    """Bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_near(one, other, atol=1e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=atol), one, other)
