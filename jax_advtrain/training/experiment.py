"""Everything that a config describes, made once: data, network, defense, optimizer, the order of samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jax_advtrain import data, defenses, devices, models, segmentation, tasks
from jax_advtrain.data import Dataset, Splits, slots
from jax_advtrain.data.slots import Visits
from jax_advtrain.evaluation import suite
from jax_advtrain.models import functional
from jax_advtrain.training import feed, optim, starts
from jax_advtrain.training.state import TrainState, evaluated_params
from jax_advtrain.training.step import HostBatch, Recipe, init_state


class Experiment(NamedTuple):
    """A run's parts.

    Attributes:
      splits: the data.
      recipe: what the training program is.
      layout: (shards, slots a shard) positions into the training arrays, -1 = padding.
      visits: which samples a step visits.
      epochs: how long it trains.
      mesh: the devices.
      example: a batch of the right shapes.
      template: the state before the first step.
      started_from: folder of the weights that the template has, None where they are fresh.
    """

    splits: Splits
    recipe: Recipe
    layout: np.ndarray
    visits: Visits
    epochs: int
    mesh: Mesh
    example: HostBatch
    template: TrainState
    started_from: Path | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.visits.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def logits_fn(self, state: TrainState) -> jax.tree_util.Partial:
        """The trained model as attacks see it."""
        return functional.logits_fn(self.recipe.graphdef, evaluated_params(state), state.batch_stats)

    def margins(self, state: TrainState) -> np.ndarray | None:
        """(N,) the margins of the training samples, in their order; None where the method keeps none."""
        if "margin" not in state.sample_state:
            return None
        of_slots = devices.gathered(state.sample_state["margin"]).reshape(self.layout.shape)
        found, there = np.zeros(len(self.splits.train)), self.layout >= 0
        found[self.layout[there]] = of_slots[there]
        return found

    @property
    def is_binary(self) -> bool:
        return self.recipe.task.name == tasks.BINARY.name

    @property
    def attacked_task(self) -> tasks.Task:
        """The task as attacks and evaluation see it: label smoothing, which only training has, is left out."""
        task = self.recipe.task
        return task if task.is_dense else tasks.for_outputs(1 if self.is_binary else 2)


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
    _check_labels(config, train)
    if config.one_logit and train.num_classes != 2:
        raise ValueError(f"one_logit needs a set of 2 classes; {train.name!r} has {train.num_classes}")
    outputs = 1 if config.one_logit else train.num_classes
    network = models.create(config.model, outputs, train.image_shape, config.seed)
    start = None
    if config.init_from and is_start:
        start = starts.started_from(config.init_from, network, config.model, outputs, train)
        network = start.network
    layout = slots.make_slots(len(train), config.num_shards, config.seed)
    visits = Visits(layout, config.batch_size, config.seed)
    recipe = Recipe(
        graphdef=network.graphdef,
        task=tasks.smoothed(asked(config), config.label_smoothing),
        defense=defenses.from_config(config.defense, config.classwise),
        optimizer=optim.build(config.optimizer, steps_per_epoch=visits.steps_per_epoch, epochs=config.epochs),
        num_shards=config.num_shards,
        seed=config.seed,
        augment=data.fields.augmentation(config.data),
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
    )
    if hasattr(recipe.defense, "epoch_end") and not len(splits.validation):
        remedy = config.classwise["name"]
        what = f"classwise {remedy!r}" if remedy else f"defense {config.defense['name']!r}"
        raise ValueError(f"{what} needs validation data; set data.validation_size")
    if config.patience is not None and not len(splits.validation):
        raise ValueError("patience needs validation data; set data.validation_size, or patience to None")
    example = feed.example(mesh, train, visits(0))
    template = init_state(
        recipe,
        network.params,
        network.batch_stats,
        num_slots=layout.size,
        num_classes=train.num_classes,
        example=example,
    )
    return Experiment(
        splits,
        recipe,
        layout,
        visits,
        config.epochs,
        mesh,
        example,
        template,
        None if start is None else start.folder,
    )


def asked(config: Any) -> tasks.Task:
    """The task that a config names.

    Raises:
      ValueError: a dice_threshold outside (0, 1].
    """
    if config.dice_threshold is not None:
        return segmentation.segmentation(config.dice_threshold)
    return tasks.BINARY if config.one_logit else tasks.CLASSIFICATION


def _check_labels(config: Any, train: Dataset) -> None:
    """Raises ValueError where labels, network and task are not all of images, or all of pixels."""
    network, is_dense = config.model["name"], models.is_dense(config.model["name"])
    if config.dice_threshold is None and train.is_dense:
        raise ValueError(
            f"data set {train.name!r} has a label for each pixel: set dice_threshold (0.6 in the published runs), and "
            "model.name='unet'"
        )
    if config.dice_threshold is not None and not train.is_dense:
        raise ValueError(
            f"dice_threshold is of segmentation, and {train.name!r} has one label an image; set it to None"
        )
    if train.is_dense and not is_dense:
        raise ValueError(
            f"model {network!r} gives no class scores for each pixel, which {train.name!r} needs; give 'unet'"
        )
    if is_dense and not train.is_dense:
        raise ValueError(f"model {network!r} gives class scores for each pixel; {train.name!r} has one label an image")


def members(experiment: Experiment, texts: Sequence[str]) -> list[suite.Member]:
    """The attacks that config texts name, fit for the experiment's outputs."""
    return suite.parse_all(texts, task=experiment.attacked_task)
