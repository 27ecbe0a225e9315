"""The convolutional network that TRADES trains on MNIST."""

from collections.abc import Sequence
from functools import partial

import jax
from flax import nnx
from jax.nn.initializers import zeros
from jaxtyping import Array, Float

from jax_advtrain.models import fields
from jax_advtrain.models.layers import Conv, Dense, as_logits, kaiming_fan_in, normalise
from jax_advtrain.models.pooling import max_pool


class TradesCNN(nnx.Module):
    """Twice two 3x3 convolutions without padding and a 2x2 max pooling, then three dense layers, ReLU between them.

    With the default fields on 28x28x1 images and 10 classes it has 312,202 parameters. The original drops half of the
    first dense layer in training; here there is no dropout. As there, the last layer starts at zero: fresh
    weights give equal logits, and the first step moves that layer alone.

    Args:
      image_shape: (H, W, C), H and W at least 16.
      num_classes: outputs; 1 means one logit, squeezed to (B,).
      channels: output channels of the first and of the second pair of convolutions.
      hidden: width of the two dense layers between the convolutions and the output.
      mean, std: subtracted from and dividing the pixels, in [0, 1] units; one number or one a channel.
      dtype: to compute in ("bfloat16", ...), None: that of images and weights. Logits are at least float32.
      lowering: of the convolutions (`convolution.conv2d`).
      rngs: gives the initial weights.

    Raises:
      ValueError: a field of the wrong kind, or images that are too small or have no height, width and channels.

    References:
      Carlini and Wagner 2017, arXiv:1608.04644 (the network); Zhang et al. 2019, arXiv:1901.08573.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_classes: int,
        *,
        channels: Sequence[int] = (32, 64),
        hidden: int = 200,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        dtype: str | None = None,
        lowering: str = "auto",
        rngs: nnx.Rngs,
    ):
        height, width, in_channels = fields.image_sizes("trades_cnn", image_shape)
        if min(height, width) < 16:
            raise ValueError(f"trades_cnn takes images of 16x16 pixels and more, not {height}x{width}")
        self.mean, self.std = fields.normalisation(mean, std, in_channels)
        channels, hidden = fields.widths("channels", channels), fields.count("hidden", hidden)
        if len(channels) != 2:
            raise ValueError(f"model.channels = {channels}: expected two numbers, one a pair of convolutions")
        dtype, lowering = fields.compute_dtype(dtype), fields.lowering(lowering)
        conv = partial(Conv, kernel_size=(3, 3), dtype=dtype, lowering=lowering, initial=kaiming_fan_in, rngs=rngs)

        first, second = channels
        self.conv1, self.conv2 = conv(in_channels, first), conv(first, first)
        self.conv3, self.conv4 = conv(first, second), conv(second, second)
        height, width = (((size - 4) // 2 - 4) // 2 for size in (height, width))
        self.dense1 = Dense(height * width * second, hidden, dtype=dtype, rngs=rngs)
        self.dense2 = Dense(hidden, hidden, dtype=dtype, rngs=rngs)
        self.dense3 = Dense(hidden, num_classes, dtype=dtype, initial=zeros, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train=False, mask=None, groups=1
    ) -> Float[Array, "batch *classes"]:
        """Logits of images in [0, 1]; the other arguments are the networks' common ones and change nothing here."""
        x = normalise(images, self.mean, self.std)
        for first, second in ((self.conv1, self.conv2), (self.conv3, self.conv4)):
            x = max_pool(jax.nn.relu(second(jax.nn.relu(first(x)))), 2, 2)
        x = x.reshape(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3])  # not -1: there may be no image
        x = jax.nn.relu(self.dense1(x))
        x = jax.nn.relu(self.dense2(x))
        return as_logits(self.dense3(x))
