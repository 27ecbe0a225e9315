"""The small strided CNN: 3x3 convolutions of stride 2, then dense layers."""

import itertools
import math
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from jax_advtrain.models import fields
from jax_advtrain.models.batch_norm import BatchNorm
from jax_advtrain.models.layers import Conv, Dense, as_logits, normalise

_PADDING = ((1, 1), (1, 1))


class SmallCNN(nnx.Module):
    """Convolutions of stride 2 (padding 1 on all sides, so not "SAME") and dense layers, ReLU between them.

    No pooling: strides cost nothing and have the cheapest input gradients. With the default fields on 28x28x1
    images and 10 classes it has 421,642 parameters.

    Args:
      image_shape: (H, W, C).
      num_classes: outputs; 1 means one logit, squeezed to (B,).
      channels: output channels of each convolution.
      hidden: widths of the dense layers between the convolutions and the output.
      batch_norm: BatchNorm between each convolution (then without bias) and its ReLU.
      mean, std: subtracted from and dividing the pixels, in [0, 1] units; one number or one a channel.
      dtype: to compute in ("bfloat16", ...), None: that of images and weights. Logits are at least float32.
      lowering: of the convolutions (`convolution.conv2d`).
      rngs: gives the initial weights.

    Raises:
      ValueError: a field of the wrong kind, or images without height, width and channels.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_classes: int,
        *,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (128,),
        batch_norm: bool = False,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        dtype: str | None = None,
        lowering: str = "auto",
        rngs: nnx.Rngs,
    ):
        height, width, in_channels = fields.image_sizes("small_cnn", image_shape)
        self.mean, self.std = fields.normalisation(mean, std, in_channels)
        self.dtype = fields.compute_dtype(dtype)
        channels, hidden = fields.widths("channels", channels), fields.widths("hidden", hidden)
        with_norm, lowering = fields.flag("batch_norm", batch_norm), fields.lowering(lowering)
        self.num_convs, self.num_dense = len(channels), len(hidden) + 1

        for index, features in enumerate(channels):
            conv = Conv(
                in_channels,
                features,
                (3, 3),
                strides=(2, 2),
                padding=_PADDING,
                use_bias=not with_norm,
                dtype=self.dtype,
                lowering=lowering,
                rngs=rngs,
            )
            setattr(self, f"conv{index}", conv)
            setattr(self, f"norm{index}", BatchNorm(features) if with_norm else None)
            height, width, in_channels = (height + 1) // 2, (width + 1) // 2, features
        dense_widths = (math.prod((height, width, in_channels)), *hidden, num_classes)
        for index, (inputs, outputs) in enumerate(itertools.pairwise(dense_widths)):
            setattr(self, f"dense{index}", Dense(inputs, outputs, dtype=self.dtype, rngs=rngs))

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train=False, mask=None, groups=1
    ) -> Float[Array, "batch *classes"]:
        """Logits of images in [0, 1]; the other arguments are those of `BatchNorm`."""
        x = normalise(images, self.mean, self.std)
        for index in range(self.num_convs):
            x, norm = getattr(self, f"conv{index}")(x), getattr(self, f"norm{index}")
            x = jax.nn.relu(x if norm is None else norm(x, train=train, mask=mask, groups=groups))
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))  # not -1: there may be no image
        for index in range(self.num_dense):
            x = getattr(self, f"dense{index}")(jax.nn.relu(x) if index else x)
        return as_logits(x)
