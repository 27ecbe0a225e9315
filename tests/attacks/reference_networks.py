"""The reference's three small networks in plain jnp, and a reader of its vectors that knows what was read."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np


def _mlp(params, images):
    hidden = images.reshape(images.shape[0], -1)
    hidden = jax.nn.relu(hidden @ params["w0"] + params["b0"])
    hidden = jax.nn.relu(hidden @ params["w1"] + params["b1"])
    return hidden @ params["w2"] + params["b2"]


def _cnn(params, images):
    hidden = images
    for layer in ("conv0", "conv1"):
        hidden = jax.lax.conv_general_dilated(
            hidden, params[f"{layer}_w"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jax.nn.relu(hidden + params[f"{layer}_b"])
    return hidden.reshape(images.shape[0], -1) @ params["dense_w"] + params["dense_b"]


def _binary(params, images):
    hidden = jax.nn.relu(images.reshape(images.shape[0], -1) @ params["w0"] + params["b0"])
    return (hidden @ params["w1"] + params["b1"])[:, 0]


FORWARD = {"mlp": _mlp, "cnn": _cnn, "bin": _binary}


class Vectors:
    """A reference file; `unread` lists the keys of one dtype, or of none, that nobody asked for."""

    def __init__(self, directory: Path, name: str):
        self._arrays = np.load(directory / f"{name}.npz")
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> np.ndarray:
        self._read.add(key)
        return self._arrays[key]

    def names(self) -> list[str]:
        return list(self._arrays.files)

    def unread(self, other_dtype: str) -> set[str]:
        """Keys not read, those that belong to the other dtype ("f32" or "f64") left out."""
        return {key for key in self.names() if other_dtype not in key.split("_")} - self._read


def network(models: Vectors, name: str, dtype) -> jax.tree_util.Partial:
    """One of "mlp", "cnn", "bin" (one logit, shape (B,)) as a logits_fn whose weights are traced leaves."""
    keys = [key for key in models.names() if key.startswith(f"{name}_") and "logits" not in key]
    return jax.tree_util.Partial(FORWARD[name], {key[4:]: jnp.asarray(models[key], dtype) for key in keys})
