"""The two networks of the comparison as JAX functions of nested dicts of weights, and how they go to npz and back.

`small_cnn` is the project's; `resnet` exists here only: a ResNet-8 without BatchNorm (stem of stride 2, three blocks of
16, 32 and 64 channels, the last convolution of each block starting at zero), so that both sides compute one function.
"""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_advtrain import models
from jax_advtrain.models.convolution import conv2d

WIDTHS, STRIDES = (16, 32, 64), (1, 2, 2)
_SAME = ((1, 1), (1, 1))


def make(architecture: str, image_shape: tuple[int, ...], seed: int = 0):
    """(logits function of (params, images), fresh params)."""
    if architecture == "small_cnn":
        network = models.create({"name": "small_cnn"}, 10, image_shape, seed)
        return lambda params, images: models.logits_fn(network.graphdef, params, {})(images), network.params
    if architecture == "resnet":
        return resnet, resnet_params(image_shape[-1], jax.random.key(seed))
    raise ValueError(f"architecture is {architecture!r}; give small_cnn or resnet")


def resnet_params(channels: int, key: jax.Array) -> dict[str, Any]:
    def conv(number, inputs, outputs, size=3, scale=1.0):
        shape = (size, size, inputs, outputs)
        noise = jax.random.normal(jax.random.fold_in(key, number), shape)
        return {
            "kernel": noise * (scale * math.sqrt(2 / math.prod(shape[:3]))),
            "bias": jnp.zeros(outputs),
        }

    params, inputs = {"stem": conv(0, channels, WIDTHS[0])}, WIDTHS[0]
    for n, width in enumerate(WIDTHS):
        params[f"block{n}"] = {
            "first": conv(3 * n + 1, inputs, width),
            "second": conv(3 * n + 2, width, width, scale=0.0),
            "skip": conv(3 * n + 3, inputs, width, size=1),
        }
        inputs = width
    params["dense"] = {
        "kernel": jax.random.normal(jax.random.fold_in(key, 99), (inputs, 10)) / math.sqrt(inputs),
        "bias": jnp.zeros(10),
    }
    return params


def resnet(params: dict[str, Any], images: jax.Array) -> jax.Array:
    def conv(weights, x, stride, padding=_SAME):
        return conv2d(x, weights["kernel"], strides=(stride, stride), padding=padding) + weights["bias"]

    x = jax.nn.relu(conv(params["stem"], images, 2))
    for n, stride in enumerate(STRIDES):
        block = params[f"block{n}"]
        inner = conv(block["second"], jax.nn.relu(conv(block["first"], x, stride)), 1)
        x = jax.nn.relu(conv(block["skip"], x, stride, ((0, 0), (0, 0))) + inner)
    return x.mean(axis=(1, 2)) @ params["dense"]["kernel"] + params["dense"]["bias"]


class Case(NamedTuple):
    """A trained network with the test images it is attacked on, as `train.py` saved it."""

    architecture: str
    params: dict[str, Any]
    images: np.ndarray
    labels: np.ndarray


def save(path: Path, case: Case, logits: np.ndarray) -> None:
    flat = jax.tree_util.tree_flatten_with_path(case.params)[0]
    weights = {"w/" + "/".join(part.key for part in place): np.asarray(leaf) for place, leaf in flat}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        architecture=case.architecture,
        images=case.images,
        labels=case.labels,
        logits=logits,
        **weights,
    )


def load(path: Path) -> Case:
    kept, params = np.load(path), {}
    for name in kept.files:
        if name.startswith("w/"):
            *parents, last = name.split("/")[1:]
            place = params
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = jnp.asarray(kept[name])
    return Case(str(kept["architecture"]), params, kept["images"], kept["labels"])


def logits_fn(case: Case):
    """The case's network with its weights as leaves, so that they are traced arguments."""
    return jax.tree_util.Partial(_function(case.architecture, case.images.shape[1:]), case.params)


@functools.cache
def _function(architecture: str, image_shape: tuple[int, ...]):
    """One object for all cases of a network, so that they share compilations."""
    return make(architecture, image_shape)[0]
