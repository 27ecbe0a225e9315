"""Several defenses on data of two dimensions, trained alike and drawn side by side."""

import copy
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from jax_advtrain import devices
from jax_advtrain.config import ConfigError
from jax_advtrain.evaluation import results
from jax_advtrain.reports import boundary
from jax_advtrain.studies import runs
from jax_advtrain.training.display import Display


def train_beside(config: Any, folder: Path, display: Display) -> Path:
    """Trains config.beside's defenses in <folder>/beside/<name> and draws all models' boundaries and margins.

    Raises:
      ConfigError: data that are not points in the plane.
    """
    variants = {config.defense.name: (config, folder)}
    for name, defense in config.beside.items():
        other = copy.deepcopy(config)
        with other.unlocked():
            other.defense = ml_collections.ConfigDict(defense)
            other.beside = ml_collections.ConfigDict()
        variants[name] = (other, folder / "beside" / name)
    panels, experiment, spread = [], None, None
    for name, (variant, place) in variants.items():
        if place != folder:
            display.say(f"beside it: {name}")
            runs.train_and_evaluate(variant, place, display)
        experiment, state = runs.load_run(variant, place, "last", display)
        train = experiment.splits.train
        if train.image_shape != (2,):
            raise ConfigError(
                f"beside needs points in the plane; {train.name!r} has samples of shape {train.image_shape}"
            )
        spread = spread or boundary.plane(train.images)
        x, y, positions = spread
        scores = np.asarray(experiment.logits_fn(state)(jnp.asarray(positions)))
        found = results.read_results(place / "eval" / "last")
        panel = {
            "name": name,
            "scores": scores.reshape(len(y), len(x), -1),
            "accuracy": next(r["correct"] / r["n"] for r in found["records"] if r["attack"] == "clean"),
        }
        if "margin" in state.sample_state:
            slots = devices.gathered(state.sample_state["margin"]).reshape(experiment.layout.shape)
            panel["margins"] = np.zeros(len(train))
            panel["margins"][experiment.layout[experiment.layout >= 0]] = slots[experiment.layout >= 0]
        elif "epsilon" in variant.defense:
            panel["margins"] = float(variant.defense.epsilon)
        panels.append(panel)
    assert experiment is not None and spread is not None
    path = folder / "plots" / "boundary.png"
    boundary.decision_regions(
        panels,
        experiment.splits.train.images,
        experiment.splits.train.labels,
        spread[0],
        spread[1],
        path,
        norm=config.defense.get("norm", "l2"),
    )
    display.say(f"boundaries: {path}")
    return path
