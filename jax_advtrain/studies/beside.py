"""Several defenses on data of two dimensions, trained alike and drawn side by side."""

import copy
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from jax_advtrain.evaluation.attack_dataset import attack_dataset
from jax_advtrain.reports import boundary
from jax_advtrain.studies import opening, reporting, runs
from jax_advtrain.training import workdir
from jax_advtrain.training.checkpoints import LAST
from jax_advtrain.training.display import Display
from jax_advtrain.training.experiment import Experiment
from jax_advtrain.training.state import TrainState

PICTURE_NAME = "boundary.png"


def train_beside(config: Any, folder: Path | str, display: Display | None = None) -> Path:
    """Trains the config's defense in the workdir, those of config.beside in <folder>/beside/<name>, and draws all
    boundaries with the margins, in plots/boundary.png. What is trained already is not trained again.

    Raises:
      ConfigError: before any work: data that are not points in the plane, or what `runs.train_and_evaluate` refuses.
    """
    folder, display = Path(folder), display or Display()
    variants = _variants(config, folder)
    for variant, place in variants.values():
        opening.set_up(variant, place)
    panels, experiment, plane = [], None, None
    for name, (variant, place) in variants.items():
        if place != folder:
            display.say(f"beside it: {name}")
        runs.train_and_evaluate(variant, place, display)
        experiment, state = opening.load_run(variant, place, LAST, display)
        train = experiment.splits.train
        plane = plane or boundary.plane(train.images)
        clean = attack_dataset(None, experiment.logits_fn(state), experiment.splits.test, experiment.mesh)
        panels.append(
            {
                "name": _title(name, variant.defense),
                "scores": _scores(experiment, state, plane),
                "accuracy": float(clean.is_right.mean()),
                "margins": _margins(variant, experiment, state),
            }
        )
    assert experiment is not None and plane is not None
    path, train = folder / "plots" / PICTURE_NAME, experiment.splits.train
    if workdir.is_writer():
        x, y, _ = plane
        norm = config.defense.get("norm", "l2")
        boundary.decision_regions(panels, train.images, train.labels, x, y, path, norm=norm, title=train.name)
    display.say(f"boundaries: {path}")
    reporting.report_run(config, folder, display)  # again, now with the picture
    return path


def _variants(config: Any, folder: Path) -> dict[str, tuple[Any, Path]]:
    """The config itself, and one of each defense beside it; each with its workdir."""
    variants = {config.defense.name: (config, folder)}
    for name, defense in config.beside.items():
        other = copy.deepcopy(config)
        with other.unlocked():
            other.defense = ml_collections.ConfigDict(defense)
            other.beside = ml_collections.ConfigDict()
        variants[name] = (other, folder / "beside" / name)
    return variants


def _title(name: str, defense: Any) -> str:
    """A name with the number that matters."""
    for field, what in (("eps_max", "ceiling"), ("epsilon", "radius")):
        if field in defense:
            return f"{name}, {what} {defense[field]:g}"
    return name


def _scores(experiment: Experiment, state: TrainState, plane) -> np.ndarray:
    """(len(y), len(x), classes) logits over the plane."""
    x, y, positions = plane
    scores = np.asarray(experiment.logits_fn(state)(jnp.asarray(positions)))
    if scores.ndim == 1:
        scores = np.stack([np.zeros_like(scores), scores], axis=-1)
    return scores.reshape(len(y), len(x), -1)


def _margins(config: Any, experiment: Experiment, state: TrainState) -> np.ndarray | float | None:
    """The margins of the training samples, the one radius of the method, or nothing."""
    found = experiment.margins(state)
    if found is None:
        return float(config.defense.epsilon) if "epsilon" in config.defense else None
    return found
