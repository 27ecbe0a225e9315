"""The multilayer perceptron."""

import itertools
import math
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from jax_advtrain.models import fields
from jax_advtrain.models.layers import Dense, as_logits, normalise


class MLP(nnx.Module):
    """Images of any shape, flattened, through dense layers with ReLU between them.

    Args:
      image_shape: of one image or point: (28, 28, 1), (2,), ...
      num_classes: outputs; 1 means one logit, squeezed to (B,).
      hidden: widths of the hidden layers; none makes a linear classifier.
      mean, std: subtracted from and dividing the pixels, in [0, 1] units; one number or one a channel (last axis).
      dtype: to compute in ("bfloat16", ...), None: that of images and weights. Logits are at least float32.
      rngs: gives the initial weights.

    Raises:
      ValueError: a field of the wrong kind.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_classes: int,
        *,
        hidden: Sequence[int] = (48, 32),
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        dtype: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.mean, self.std = fields.normalisation(mean, std, image_shape[-1])
        self.dtype = fields.compute_dtype(dtype)
        widths = (math.prod(image_shape), *fields.widths("hidden", hidden), num_classes)
        self.num_dense = len(widths) - 1
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            setattr(self, f"dense{index}", Dense(inputs, outputs, dtype=self.dtype, rngs=rngs))

    def __call__(
        self, images: Float[Array, "batch *image"], *, train=False, mask=None, groups=1
    ) -> Float[Array, "batch *classes"]:
        """Logits of images in [0, 1]; the other arguments are the networks' common ones and change nothing here."""
        x = normalise(images, self.mean, self.std)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))  # not -1: there may be no image
        for index in range(self.num_dense):
            x = getattr(self, f"dense{index}")(jax.nn.relu(x) if index else x)
        return as_logits(x)
