"""A network's weights on the disk: a folder with one safetensors file and a config, nothing that could run code."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_advtrain.models import registry
from jax_advtrain.models.functional import Network, Tree, logits_fn
from jax_advtrain.models.weights_flat import abstract, check_names, filled, flat, read_safetensors

WEIGHTS_NAME, CONFIG_NAME = "weights.safetensors", "config.json"
_FORMAT = 1


class Exported(NamedTuple):
    """What a folder written by `export` holds.

    Attributes:
      config_model: of `registry.create`.
      num_classes: outputs of the network.
      image_shape: of one image.
      class_names: one name a class, or None.
      network: with its weights as JAX arrays.
    """

    config_model: dict[str, Any]
    num_classes: int
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...] | None
    network: Network


def export(
    folder: str | os.PathLike,
    config_model: Mapping[str, Any],
    params: Tree,
    batch_stats: Tree,
    *,
    num_classes: int,
    image_shape: Sequence[int],
    class_names: Sequence[str] | None = None,
) -> Path:
    """Writes weights and config into a new folder, whole or not at all.

    Args:
      folder: must not exist yet; its parents are made.
      config_model: {"name": ..., fields}; fields of JSON's own types, and tuples. All fields are written, also those
        that have their defaults: a default that changes later does not change the network.
      params, batch_stats: of that network (`Network`), float arrays of any place.
      num_classes, image_shape: that it was created with.
      class_names: one name a class (two for one logit).

    Returns:
      The folder.

    Raises:
      ValueError: one line: something lies there; weights of another network; wrong class names.
      OSError: no place to write.
    """
    from safetensors.numpy import save_file

    final = Path(folder)
    if final.exists():
        raise ValueError(f"{final} is there already; give another folder, or move it away")
    arrays = _names(params, batch_stats)
    image_shape = tuple(int(size) for size in image_shape)
    template = abstract(config_model, num_classes, image_shape)
    check_names(_names(template.params, template.batch_stats), arrays, "the weights")
    check_class_names(class_names, num_classes)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors takes no other order
    config = {
        "format": _FORMAT,
        "model": registry.plain_fields(config_model),
        "num_classes": num_classes,
        "image_shape": list(image_shape),
        "dtype": np.result_type(*arrays.values()).name,
    }
    if class_names is not None:
        config["class_names"] = list(class_names)
    text = json.dumps(config, indent=2) + "\n"

    final.parent.mkdir(parents=True, exist_ok=True)
    workplace = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        workplace.mkdir()
        save_file(arrays, workplace / WEIGHTS_NAME)
        (workplace / CONFIG_NAME).write_text(text, encoding="utf-8")
        os.rename(workplace, final)  # fails where a folder that is not empty came in between
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return final


def load(folder: str | os.PathLike, *, own_classes: bool = False) -> jax.tree_util.Partial:
    """The network of a folder written by `export`, as a function from images (B, *image) to logits.

    Returns:
      `logits_fn` of the network: images are floats in [0, 1]; the weights are leaves of the pytree.

    Raises:
      ValueError: as `read`.

    Example:
      >>> f = load("exported")  # doctest: +SKIP
      >>> f(images).argmax(-1)  # doctest: +SKIP
    """
    return logits_fn(*read(folder, own_classes=own_classes).network)


def read(folder: str | os.PathLike, *, own_classes: bool = False) -> Exported:
    """Everything that `export` wrote.

    Args:
      folder: that `export` made.
      own_classes: also take networks named by the dotted path of a class. This imports, and so EXECUTES, the module
        that the config names: for folders that you trust.

    Raises:
      ValueError: one line: no such folder or no export, a damaged one, weights that do not fit the config, a class of
        your own without `own_classes`.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file():
        what = "holds no exported network" if folder.is_dir() else "is no folder of an exported network"
        raise ValueError(f"{folder} {what}: expected {CONFIG_NAME} and {WEIGHTS_NAME} in it")
    config_model, num_classes, image_shape, class_names = _read_config(folder / CONFIG_NAME)
    if "." in str(config_model.get("name")) and not own_classes:
        raise ValueError(
            f"{folder} names the class {config_model['name']!r}, whose module would be executed; "
            "give own_classes=True if you trust it"
        )
    arrays = read_safetensors(folder / WEIGHTS_NAME)
    template = abstract(config_model, num_classes, image_shape)
    check_names(_names(template.params, template.batch_stats), arrays, str(folder / WEIGHTS_NAME))
    params = filled(template.params, arrays, "params.")
    batch_stats = filled(template.batch_stats, arrays, "batch_stats.")
    network = Network(template.graphdef, params, batch_stats)
    return Exported(config_model, num_classes, image_shape, class_names, network)


def check_class_names(class_names: Sequence[str] | None, num_classes: int) -> None:
    """Raises ValueError unless there is one name a class, or None at all; one logit parts two classes."""
    count = max(num_classes, 2)
    if class_names is not None and (isinstance(class_names, str) or len(class_names) != count):
        raise ValueError(f"class_names = {class_names!r}: expected {count} names")


def _names(params: Tree, batch_stats: Tree) -> dict[str, Any]:
    """The names in the file: params and batch_stats apart, for they may share the names of their leaves."""
    return {**flat(params, "params."), **flat(batch_stats, "batch_stats.")}


def _read_config(path: Path) -> tuple[dict[str, Any], int, tuple[int, ...], tuple[str, ...] | None]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["format"] != _FORMAT:
            raise ValueError(f"format {config['format']!r}, this version reads {_FORMAT}")
        model, names = dict(config["model"]), config.get("class_names")
        num_classes, image_shape = int(config["num_classes"]), tuple(int(size) for size in config["image_shape"])
        check_class_names(names, num_classes)
        return model, num_classes, image_shape, None if names is None else tuple(map(str, names))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from None
