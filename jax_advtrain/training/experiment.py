"""Everything that a config describes, made once: data, network, defense, optimizer, the order of samples."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jax_advtrain import data, defenses, models, tasks
from jax_advtrain.data import Splits, slots
from jax_advtrain.evaluation import suite
from jax_advtrain.models import Network, functional
from jax_advtrain.training import feed, optim
from jax_advtrain.training.state import TrainState, evaluated_params
from jax_advtrain.training.step import HostBatch, Recipe, init_state


class Experiment(NamedTuple):
    """A run's parts.

    Attributes:
      splits: the data in memory.
      recipe: what the training program is.
      layout: (shards, slots a shard) positions into the training arrays, -1 = padding.
      steps_per_epoch, epochs, batch_size: how long it trains.
      mesh: the devices.
      example: a batch of the right shapes.
      template: the state before the first step.
    """

    splits: Splits
    recipe: Recipe
    layout: np.ndarray
    steps_per_epoch: int
    epochs: int
    batch_size: int
    mesh: Mesh
    example: HostBatch
    template: TrainState

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def logits_fn(self, state: TrainState) -> jax.tree_util.Partial:
        """The trained model as attacks see it."""
        return functional.logits_fn(self.recipe.graphdef, evaluated_params(state), state.batch_stats)

    @property
    def is_binary(self) -> bool:
        return self.recipe.task.name == tasks.BINARY.name


def build(config: Any, mesh: Mesh, *, is_start: bool = True) -> Experiment:
    """Loads the data and makes all parts.

    Args:
      config: a validated config.
      mesh: devices along one axis; their number divides config.num_shards.
      is_start: False where a checkpoint will be restored, so that `init_from` is not looked at.

    Raises:
      ValueError: one line: missing or bad data, a network that does not take such images.
    """
    splits = data.load(config.data)
    train = splits.train
    if train.num_classes < 2:
        raise ValueError(f"data set {train.name!r} has {train.num_classes} class; classification needs two or more")
    if config.one_logit and train.num_classes != 2:
        raise ValueError(f"one_logit needs a set of 2 classes; {train.name!r} has {train.num_classes}")
    outputs = 1 if config.one_logit else train.num_classes
    network = models.create(config.model, outputs, train.image_shape, config.seed)
    if config.init_from and is_start:
        network = started_from(config.init_from, network, config.model["name"], outputs, train)
    layout = slots.make_slots(len(train), config.num_shards, config.seed)
    first = slots.epoch_batches(layout, config.batch_size, config.seed, 0)
    recipe = Recipe(
        graphdef=network.graphdef,
        task=tasks.smoothed(tasks.for_outputs(outputs), config.label_smoothing),
        defense=defenses.from_config(config.defense),
        optimizer=optim.build(config.optimizer, steps_per_epoch=len(first), epochs=config.epochs),
        num_shards=config.num_shards,
        seed=config.seed,
        augment=data.augment.build(tuple(config.data.augment)) if config.data.augment else None,
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
    )
    if hasattr(recipe.defense, "epoch_end") and not len(splits.validation):
        raise ValueError(f"defense {config.defense['name']!r} needs validation data; set data.validation_size")
    if config.patience is not None and not len(splits.validation):
        raise ValueError("patience needs validation data; set data.validation_size, or patience to None")
    example = feed.host_batch(mesh, train, slots.positions(layout, first[0]).reshape(-1), first[0].reshape(-1))
    template = init_state(
        recipe,
        network.params,
        network.batch_stats,
        num_slots=layout.size,
        num_classes=train.num_classes,
        example=example,
    )
    return Experiment(splits, recipe, layout, len(first), config.epochs, config.batch_size, mesh, example, template)


def started_from(folder: str, network: Network, name: str, num_outputs: int, train: data.Dataset) -> Network:
    """The network with the weights of a folder written by `models.export`.

    Raises:
      ValueError: one line: no such folder; weights of another network, of other classes or image sizes.
    """
    kept = models.read(folder, own_classes="." in name)
    for what, there, here in (
        ("network", kept.config_model.get("name"), name),
        ("outputs", kept.num_classes, num_outputs),
        ("image shape", kept.image_shape, train.image_shape),
        ("class names", kept.class_names or train.class_names, train.class_names),
        ("shapes of weights", *(jax.tree.map(np.shape, one[1:]) for one in (kept.network, network))),
    ):
        if there != here:
            shown = "" if what.startswith("shapes") else f": {there!r} there, {here!r} here"
            raise ValueError(f"init_from={folder!r} holds a network of another {what}{shown}")
    return network._replace(params=kept.network.params, batch_stats=kept.network.batch_stats)


def members(experiment: Experiment, texts: Sequence[str]) -> list[suite.Member]:
    """The attacks that config texts name, fit for the experiment's outputs."""
    return suite.parse_all(texts, binary=experiment.is_binary)
