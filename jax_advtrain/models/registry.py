"""Networks by name, from plain config values."""

import difflib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flax import nnx

from jax_advtrain.models.functional import Network, split
from jax_advtrain.models.mlp import MLP
from jax_advtrain.models.small_cnn import SmallCNN

# Each is a module class of (image_shape, num_classes, *, rngs, **fields); its keyword arguments are its config fields.
NETWORKS: Mapping[str, type[Any]] = MappingProxyType({"mlp": MLP, "small_cnn": SmallCNN})


def field_names(name: str) -> tuple[str, ...]:
    """The config fields of a network, beside `name`.

    Raises:
      ValueError: an unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(_unknown("model.name", name, sorted(NETWORKS)))
    parameters = inspect.signature(NETWORKS[name].__init__).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "rngs")


def create(config_model: Mapping[str, Any], num_classes: int, image_shape: tuple[int, ...], seed: int) -> Network:
    """Makes a network with fresh weights.

    Args:
      config_model: {"name": "small_cnn", ...fields of that network}; unnamed fields take their defaults.
      num_classes: outputs; 1 means one logit, squeezed to (B,).
      image_shape: of one sample, without the batch: (H, W, C), or (2,) for points.
      seed: of the initial weights; the same seed gives the same weights.

    Returns:
      The `Network`: graphdef, params, batch_stats.

    Raises:
      ValueError: an unknown name or field (with the valid ones and the nearest), a bad value, no classes, or an
        image shape that the network does not take.

    Example:
      >>> network = create({"name": "small_cnn"}, num_classes=10, image_shape=(28, 28, 1), seed=0)
      >>> sum(leaf.size for leaf in jax.tree.leaves(network.params))
      421642
    """
    given = dict(config_model.items())
    if "name" not in given:
        raise ValueError(f"the model config has no name; valid: {', '.join(sorted(NETWORKS))}")
    name = given.pop("name")
    valid = field_names(name)
    for field in given:
        if field not in valid:
            raise ValueError(_unknown(f"field of model {name}", field, valid))
    if num_classes < 1:
        raise ValueError(f"num_classes = {num_classes}: expected 2 or more, or 1 for one logit")
    if not image_shape or min(image_shape) < 1:
        raise ValueError(f"image_shape = {tuple(image_shape)}: expected the positive sizes of one image")
    return split(NETWORKS[name](tuple(image_shape), num_classes, rngs=nnx.Rngs(seed), **given))


def _unknown(what, got, valid):
    near = difflib.get_close_matches(str(got), valid, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what}: {got!r}{hint}; valid: {', '.join(valid)}"
