"""Weights that training starts from: of another run's workdir or checkpoint, or of an exported or converted folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain import models
from jax_advtrain.data import Dataset
from jax_advtrain.models import Network, weights_flat
from jax_advtrain.models.weights import CONFIG_NAME
from jax_advtrain.training.checkpoints import BEST, FOLDER, LAST, newest, read_weights

# They change how fast or how exactly a network computes, not which function it is.
_FREE_FIELDS = ("dtype", "lowering")
_EXPECTED = f"a workdir, a checkpoint ({FOLDER}/{BEST} of one, or {FOLDER}/{BEST}/STEP) or an exported folder"


class Start(NamedTuple):
    """Weights, and whose they are.

    Attributes:
      folder: that they were read from, a single checkpoint or an exported folder.
      network: with these weights.
    """

    folder: Path
    network: Network


def started_from(
    init_from: str, network: Network, config_model: Mapping[str, Any], num_outputs: int, train: Dataset
) -> Start:
    """The network with the weights that config.init_from names.

    A workdir stands for its best checkpoint, or its last where it has no best; "checkpoints/best" of one for the
    newest in it. Averaged weights are taken where the run has them, as in evaluation.

    Args:
      init_from: a folder.
      network, config_model, num_outputs: the new run's.
      train: its training data, whose image shape and class names must be those that the weights were trained on.

    Raises:
      ValueError: one line: nothing there; weights of another network, of other classes or image sizes.
    """
    place = Path(os.path.abspath(Path(init_from).expanduser()))
    where = f"init_from={init_from!r}"
    checkpoint = _checkpoint(place, where)
    if checkpoint is not None:
        found = _of_checkpoint(checkpoint, where)
    elif (place / CONFIG_NAME).is_file():
        found = _of_exported(place, own_classes="." in config_model["name"])
    else:
        what = "holds no weights" if place.is_dir() else "is no folder"
        raise ValueError(f"{where} {what}; give {_EXPECTED}")
    _refuse_other(where, found, config_model, num_outputs, train)
    filled = []
    for name, template in (("params", network.params), ("batch_stats", network.batch_stats)):
        expected, got = weights_flat.flat(template), weights_flat.flat(found.trees[name])
        weights_flat.check_names(expected, got, f"{where}: {name}")
        filled.append(weights_flat.filled(template, got))
    return Start(checkpoint or place, network._replace(params=filled[0], batch_stats=filled[1]))


class _Found(NamedTuple):
    """Weights as nested dicts of arrays, and what they belong to."""

    config_model: Mapping[str, Any]
    num_outputs: int
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...] | None
    trees: Mapping[str, Any]


def _of_exported(folder: Path, *, own_classes: bool) -> _Found:
    kept = models.read(folder, own_classes=own_classes)
    trees = {"params": kept.network.params, "batch_stats": kept.network.batch_stats}
    return _Found(kept.config_model, kept.num_classes, kept.image_shape, kept.class_names, trees)


def _of_checkpoint(checkpoint: Path, where: str) -> _Found:
    saved, trees = read_weights(checkpoint)
    if not saved.network:
        raise ValueError(
            f"{where}: {checkpoint} is of an earlier version, which did not keep what it was trained on; "
            "export it (--mode=export) and give that folder"
        )
    facts = saved.network
    shape, names = tuple(facts["image_shape"]), tuple(facts["class_names"])
    return _Found(saved.identity["model"], facts["num_outputs"], shape, names, trees)


def _checkpoint(place: Path, where: str) -> Path | None:
    """The folder of the one checkpoint that a place in a workdir stands for; None where it is in no workdir."""
    if place.name.isdigit() and place.parent.parent.name == FOLDER:
        return place if place.is_dir() else None
    if place.parent.name == FOLDER:
        kinds = [place]
    elif (place / FOLDER).is_dir() or place.name == FOLDER:
        folder = place / FOLDER if (place / FOLDER).is_dir() else place
        kinds = [folder / BEST, folder / LAST]
    else:
        return None
    found = next((one for kind in kinds if (one := newest(kind)) is not None), None)
    if found is None:
        raise ValueError(f"{where} has no checkpoint yet; give {_EXPECTED}")
    return found


def _refuse_other(where: str, found: _Found, config_model: Mapping[str, Any], num_outputs: int, train: Dataset) -> None:
    """Raises ValueError unless the weights' network, outputs, image shape and class names are those of the new run."""
    there, here = dict(found.config_model.items()), dict(config_model.items())
    pairs = [("network", there.get("name"), here["name"])]
    if there.get("name") == here["name"]:
        there, here = models.plain_fields(there), models.plain_fields(here)
        fields = sorted({*there, *here} - {*_FREE_FIELDS})
        pairs = [(f"model.{field}", there.get(field), here.get(field)) for field in fields]
    pairs += [
        ("number of outputs", found.num_outputs, num_outputs),
        ("image shape", found.image_shape, train.image_shape),
        ("list of class names", found.class_names or train.class_names, train.class_names),
    ]
    for what, one, other in pairs:
        if one != other:
            raise ValueError(f"{where} holds a network of another {what}: {_short(one)} there, {_short(other)} here")


def _short(value: Any) -> str:
    text = repr(value if np.ndim(value) == 0 else tuple(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
