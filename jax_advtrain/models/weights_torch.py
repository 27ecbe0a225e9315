"""Weights under the names and in the layouts of the PyTorch originals: RobustBench's, torchvision's, timm's, TRADES'.

The names do not tell everything: activation, `activated_shortcut`, the heads of a vision transformer and the way
images are normalised are the config's to say.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_advtrain.models import weights_layouts as layouts
from jax_advtrain.models.functional import Network, Tree
from jax_advtrain.models.weights_flat import Arrays, abstract, check_names, filled, flat

_PREFIX = re.compile(r"^(state_dict|module|_orig_mod|model|net|network|attacker|normalize|normalizer)\.")
_SEQUENTIAL = re.compile(r"^[01]\.")  # Sequential(normalisation, network)
_MEAN, _STD = ("mean", "mu", "new_mean"), ("std", "sigma", "new_std")


def to_torch_names(
    config_model: Mapping[str, Any], params: Tree, batch_stats: Tree, image_shape: Sequence[int]
) -> Arrays:
    """A network's weights as a PyTorch `state_dict` of the same architecture has them.

    Wide residual networks with `same_padding` take DeepMind's names, others TRADES'; residual networks with stem
    "imagenet" torchvision's, others RobustBench's. `mlp` and `small_cnn` keep our layer names. The config's mean and
    std are not among them: the originals have them in their code.

    Args:
      config_model: of `registry.create`; one of the package's own networks.
      params, batch_stats: its weights.
      image_shape: of one image, which tells how a dense layer's inputs were flattened (H, W, C here, C, H, W there).

    Returns:
      {name: array}, contiguous; kernels (out, in, height, width) and (out, in).

    Raises:
      ValueError: a network without names in PyTorch.
    """
    leaves = {**flat(params), **flat(batch_stats)}
    rules = layouts.styles(config_model)[0].rules
    channels = layouts.flattened(config_model, leaves, image_shape)
    return {
        layouts.torch_name(name, rules): np.ascontiguousarray(layouts.to_torch(name, np.asarray(leaf), channels))
        for name, leaf in leaves.items()
    }


def from_torch_names(
    config_model: Mapping[str, Any], arrays: Mapping[str, np.ndarray], num_classes: int, image_shape: Sequence[int]
) -> Network:
    """A network with the weights of a PyTorch `state_dict`.

    Wrappers' prefixes ("module.", "model.", ...) are dropped, so are `num_batches_tracked` and the group of blocks
    that TRADES' wide networks make and never call. Buffers of mean and std become those of the network
    (`with_normalisation`).

    Args:
      config_model: of `registry.create`.
      arrays: {PyTorch's name: array}; any float dtype, kept as float32.
      num_classes, image_shape: of the network.

    Raises:
      ValueError: one line: a bad config; names or shapes that do not fit it (the first few, and how many); names that
        come with another value of a field; fields that the file leaves open and the config does not give.
    """
    config_model, arrays = with_normalisation(config_model, arrays)
    styles = layouts.styles(config_model)
    template = abstract(config_model, num_classes, tuple(image_shape))
    leaves = {**flat(template.params), **flat(template.batch_stats)}
    style, names = _whose(styles, leaves, arrays)
    for field, value in style.needs.items():
        if config_model.get(field, False) != value:
            raise ValueError(f"the names are those of {style.whose}, whose networks have model.{field} = {value}")
    channels = layouts.flattened(config_model, leaves, image_shape)
    empty = {name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in leaves.items()}
    expected = {names[name]: layouts.to_torch(name, array, channels) for name, array in empty.items()}
    check_names(expected, arrays, "the weights")
    unsaid = [field for field in style.unsaid if field not in config_model]
    if unsaid:
        raise ValueError(
            f"{style.whose}'s networks keep {', '.join(unsaid)} in their code, not in the file; give the model config "
            f"{' and '.join(f'model.{field}' for field in unsaid)}"
        )
    ours = {name: layouts.from_torch(name, np.asarray(arrays[names[name]]), channels) for name in leaves}
    return Network(template.graphdef, filled(template.params, ours), filled(template.batch_stats, ours))


def with_normalisation(
    config_model: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], Arrays]:
    """Moves buffers of mean and std from a `state_dict` into the config, and drops prefixes and what is not used.

    Applied twice it changes nothing more.

    Raises:
      ValueError: one line: two arrays of one name, one buffer without the other, or a config that says otherwise.
    """
    config, plain = dict(config_model.items()), _without_prefixes(arrays)
    for name in [name for name in plain if _is_unused(name, config.get("name"))]:
        del plain[name]
    found: dict[str, list[float]] = {}
    for field, names in (("mean", _MEAN), ("std", _STD)):
        for name in [name for name in names if name in plain]:
            found[field] = [float(str(number)) for number in plain.pop(name).astype(np.float32).ravel()]
    if len(found) == 1:
        raise ValueError(f"the file holds a buffer of {next(iter(found))} and none of its fellow (mean and std)")
    for field, numbers in found.items():
        if field in config:
            given = np.ravel(config[field])
            if len(given) not in (1, len(numbers)) or not np.allclose(given, numbers, rtol=1e-5, atol=1e-6):
                raise ValueError(f"model.{field} = {config[field]!r}, but the file holds {numbers}; leave it out")
        else:
            config[field] = numbers
    return config, plain


def _whose(
    styles: Sequence[layouts.Style], leaves: Iterable[str], arrays: Mapping[str, np.ndarray]
) -> tuple[layouts.Style, dict[str, str]]:
    """Whose names the arrays have, and {our name: theirs}; where most names are nobody's, those of the likeliest."""
    found = [(style, {name: layouts.torch_name(name, style.rules) for name in leaves}) for style in styles]
    style, names = max(found, key=lambda pair: sum(name in arrays for name in pair[1].values()))
    return (style, names) if 2 * sum(name in arrays for name in names.values()) > len(names) else found[0]


def _without_prefixes(arrays: Mapping[str, np.ndarray]) -> Arrays:
    plain: Arrays = {}
    names = {name: name for name in arrays}
    for name in names:
        while _PREFIX.match(names[name]):
            names[name] = _PREFIX.sub("", names[name])
    if all(_SEQUENTIAL.match(name) for name in names.values()):
        names = {name: short[2:] for name, short in names.items()}
    for name, short in names.items():
        # A network kept twice under two wrappers is one network; two networks are not.
        if short in plain and not np.array_equal(plain[short], arrays[name]):
            raise ValueError(f"the file holds two different arrays for {short!r}; one of them is {name!r}")
        plain[short] = arrays[name]
    return plain


def _is_unused(name: str, network: Any) -> bool:
    return name.endswith("num_batches_tracked") or (network == "wide_resnet" and name.startswith("sub_block1."))
