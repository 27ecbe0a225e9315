"""Networks by name, from plain config values."""

import contextlib
import difflib
import importlib
import inspect
import json
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any

from flax import nnx

from jax_advtrain.models.functional import Network, split
from jax_advtrain.models.mlp import MLP
from jax_advtrain.models.preact_resnet import PreActResNet
from jax_advtrain.models.resnet import ResNet
from jax_advtrain.models.small_cnn import SmallCNN
from jax_advtrain.models.trades_cnn import TradesCNN
from jax_advtrain.models.unet import UNet
from jax_advtrain.models.vit import ViT
from jax_advtrain.models.wide_resnet import WideResNet

_GIVEN = ("image_shape", "num_classes", "rngs")  # by `create`, not by configs
# Each is an nnx.Module of (image_shape, num_classes, *, rngs, **fields); its other arguments are its config fields.
NETWORKS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "mlp": MLP,
        "preact_resnet": PreActResNet,
        "resnet": ResNet,
        "small_cnn": SmallCNN,
        "trades_cnn": TradesCNN,
        "unet": UNet,
        "vit": ViT,
        "wide_resnet": WideResNet,
    }
)


def network_class(name: str) -> type[Any]:
    """The class of a network.

    Args:
      name: a key of `NETWORKS`, or the dotted path of a class of your own, "package.module.Class": an `nnx.Module` made
        by (image_shape, num_classes, *, rngs, **fields) and called by (images, *, train, mask, groups). A path imports
        its module, which EXECUTES it: take paths from configs that you trust only.

    Raises:
      ValueError: one line: an unknown name; a path whose module cannot be imported or has no such class.
    """
    if isinstance(name, str) and name in NETWORKS:
        return NETWORKS[name]
    if not isinstance(name, str) or "." not in name:
        raise ValueError(f"{_unknown('model.name', name, sorted(NETWORKS))}, or a class of your own: module.Class")
    path, _, attribute = name.rpartition(".")
    found = getattr(_imported(name, path), attribute, None)
    if found is None:
        raise ValueError(f"model.name {name!r}: the module {path} has no {attribute}")
    if not (inspect.isclass(found) and issubclass(found, nnx.Module)):
        raise ValueError(f"model.name {name!r}: {attribute} is no subclass of flax.nnx.Module")
    try:
        inspect.signature(found.__init__).bind(None, (1, 1, 1), 2, **dict.fromkeys(["rngs", *_fields(found)]))
        inspect.signature(found.__call__).bind(None, None, train=True, mask=None, groups=1)
    except TypeError as error:
        expected = "made by (image_shape, num_classes, *, rngs, **fields), called by (images, *, train, mask, groups)"
        raise ValueError(f"model.name {name!r}: {error}; expected a class {expected}") from error
    return found


def field_names(name: str) -> tuple[str, ...]:
    """The config fields of a network, beside `name`.

    Raises:
      ValueError: as `network_class`.
    """
    return tuple(_fields(network_class(name)))


def is_dense(name: str) -> bool:
    """Whether a network gives class scores for each pixel: its class says so by `is_dense = True`.

    Raises:
      ValueError: as `network_class`.
    """
    return bool(getattr(network_class(name), "is_dense", False))


def check(config_model: Mapping[str, Any]) -> None:
    """Checks that name and fields of a model config exist; their values are checked by `create`.

    Raises:
      ValueError: one line: no name, an unknown name or an unknown field, with the valid ones and the nearest.
    """
    if "name" not in config_model:
        raise ValueError(f"the model config has no name; valid: {', '.join(sorted(NETWORKS))}")
    name = config_model["name"]
    network = network_class(name)
    parameters = _fields(network)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in _parameters(network))
    for field in config_model:
        if field != "name" and field not in parameters and (field in _GIVEN or not takes_any):
            raise ValueError(_unknown(f"model {name!r}: field", field, parameters))
    for field, parameter in parameters.items():
        if parameter.default is parameter.empty and field not in config_model:
            raise ValueError(f"model {name!r}: field {field!r} has no default; give model.{field}")


def plain_fields(config_model: Mapping[str, Any]) -> dict[str, Any]:
    """A model config with all fields of its network, in the form in which JSON gives them back.

    Defaults are written out, so that one that changes later cannot change the network. Those of a class of your own
    that JSON cannot hold are left out.

    Raises:
      ValueError: as `check`; a given field that JSON cannot hold.
    """
    check(config_model)
    given = dict(config_model.items())
    found = {}
    for field, parameter in _fields(network_class(given["name"])).items():
        if field not in given:
            with contextlib.suppress(TypeError):
                found[field] = json.loads(json.dumps(parameter.default))
    try:
        return {**json.loads(json.dumps(given)), **found}
    except TypeError as error:
        raise ValueError(f"the model config holds what JSON cannot: {error}") from None


def create(config_model: Mapping[str, Any], num_classes: int, image_shape: tuple[int, ...], seed: int) -> Network:
    """Makes a network with fresh weights.

    Args:
      config_model: {"name": "small_cnn", ...fields of that network}; unnamed fields take their defaults. A dotted name
        executes the module it names (`network_class`).
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
    check(config_model)
    given = dict(config_model.items())
    make = network_class(given.pop("name"))
    if num_classes < 1:
        raise ValueError(f"num_classes = {num_classes}: expected 2 or more, or 1 for one logit")
    if not image_shape or min(image_shape) < 1:
        raise ValueError(f"image_shape = {tuple(image_shape)}: expected the positive sizes of one image")
    return split(make(tuple(image_shape), num_classes, rngs=nnx.Rngs(seed), **given))


def _imported(name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except Exception as error:  # a user's module may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{path}.".startswith(f"{error.name}."):
            why = f"there is no module {error.name!r}; is its folder in PYTHONPATH?"
        else:
            why = f"the module {path} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"model.name {name!r}: {why}") from error


def _fields(network: type[Any]) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {p.name: p for p in _parameters(network) if p.kind in named and p.name not in _GIVEN}


def _parameters(network: type[Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(network.__init__).parameters.values())[3:]  # after self, image_shape, num_classes


def _unknown(what, got, valid):
    near = difflib.get_close_matches(str(got), valid, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{what} {got!r} is not known{hint}; valid: {', '.join(valid)}"
