"""Weights as flat names and arrays: to and from nested dicts, checked against a network's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_advtrain.models import registry
from jax_advtrain.models.functional import Network, Tree

Arrays = dict[str, np.ndarray]
_NAMED = 3  # keys that a message names of each kind


def read_safetensors(path: Path) -> Arrays:
    """The arrays of a safetensors file by name (bfloat16 in the dtype of ml_dtypes).

    Raises:
      ValueError: one line: missing, or not readable.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None


def abstract(config_model: Mapping[str, Any], num_classes: int, image_shape: tuple[int, ...]) -> Network:
    """A network with shapes and dtypes in place of weights; raises ValueError as `registry.create`."""
    return jax.eval_shape(lambda: registry.create(config_model, num_classes, image_shape, 0))


def flat(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted names, "block1_0.conv1.kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {prefix + _dotted(path): leaf for path, leaf in leaves}


def filled(template: Tree, arrays: Mapping[str, np.ndarray], prefix: str = "") -> Tree:
    """The tree with the arrays of those dotted names as leaves, in the template's dtypes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(arrays[prefix + _dotted(path)], leaf.dtype), template
    )


def check_names(expected: Mapping[str, Any], got: Mapping[str, np.ndarray], what: str) -> None:
    """Refuses arrays that are not those of a network.

    Args:
      expected: {name: array, or what else has a shape}.
      got: {name: array}.
      what: the arrays, in words.

    Raises:
      ValueError: one line that names the first missing, unexpected and misshapen keys, and says how many there are.
    """
    missing = [name for name in expected if name not in got]
    unexpected = [name for name in got if name not in expected]
    misshapen = [
        f"{name} {got[name].shape}, not {leaf.shape}"
        for name, leaf in expected.items()
        if name in got and got[name].shape != leaf.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    said = [_first_few(kind, names) for kind, names in kinds.items() if names]
    if said:
        raise ValueError(f"{what} and the model config do not fit: {'; '.join(said)}")


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(str(key.key) for key in path)


def _first_few(kind: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} {kind} ({', '.join(names[:_NAMED])}{more})"
