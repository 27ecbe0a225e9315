"""Wide residual networks: WRN-28-4, -28-10, -34-10, with ReLU as TRADES has them or with SiLU as DeepMind's."""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_advtrain.models import fields
from jax_advtrain.models.batch_norm import BatchNorm
from jax_advtrain.models.blocks import ACTIVATIONS, AROUND, PreActBlock, halves_of_same, strided
from jax_advtrain.models.layers import Conv, Dense, as_logits, kaiming_fan_out, normalise
from jax_advtrain.models.pooling import mean_pool


class WideResNet(nnx.Module):
    """A 3x3 convolution to 16 channels, three groups of (depth - 4) / 6 `PreActBlock`s at 16, 32 and 64 times `width`
    channels and strides 1, 2, 2, then BatchNorm, activation and the mean over places.

    On 3 channels and 10 classes: WRN-28-4 has 5,849,050 parameters, WRN-28-10 36,479,194, WRN-34-10 46,160,474. The
    second copy of the first group that TRADES' code makes and never calls is absent, and so is dropout.

    DeepMind's networks (Gowal et al., Rebuffi et al.) are these with `activation="silu"`, `same_padding=True`, and on
    28x28 images `padding=2`.

    Args:
      image_shape: (H, W, C), any sizes.
      num_classes: outputs; 1 means one logit, squeezed to (B,).
      depth: 6 n + 4, n blocks a group: 10, 16, 22, 28, 34, ...
      width: what the channels of all groups are multiplied by.
      activation: "relu" or "silu" (also called swish).
      same_padding: strided convolutions pad as TensorFlow's "SAME" (on even sizes one row and column, behind); False:
        one on every side, as PyTorch.
      padding: rows and columns of zeros around the images, before `mean` and `std`.
      mean, std: subtracted from and dividing the pixels, in [0, 1] units; one number or one a channel.
      dtype: to compute in ("bfloat16", ...), None: that of images and weights. Logits are at least float32.
      lowering: of the convolutions (`convolution.conv2d`).
      rngs: gives the initial weights.

    Raises:
      ValueError: a field of the wrong kind, or images without height, width and channels.

    References:
      Zagoruyko and Komodakis 2016, arXiv:1605.07146; Zhang et al. 2019 (TRADES), arXiv:1901.08573; Gowal et al. 2020,
      arXiv:2010.03593; Rebuffi et al. 2021, arXiv:2103.01946.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_classes: int,
        *,
        depth: int = 28,
        width: int = 10,
        activation: str = "relu",
        same_padding: bool = False,
        padding: int = 0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        dtype: str | None = None,
        lowering: str = "auto",
        rngs: nnx.Rngs,
    ):
        rows, columns, in_channels = fields.image_sizes("wide_resnet", image_shape)
        self.mean, self.std = fields.normalisation(mean, std, in_channels)
        if fields.count("depth", depth) < 10 or (depth - 4) % 6:
            raise ValueError(f"model.depth = {depth}: expected 10, 16, 22, 28, 34, ...: 6 layers a block and 4 more")
        self.num_blocks, self.padding = (depth - 4) // 6, fields.count("padding", padding, least=0)
        self.activation = fields.choice("activation", activation, ACTIVATIONS)
        width, dtype, lowering = fields.count("width", width), fields.compute_dtype(dtype), fields.lowering(lowering)
        pads_as_same = fields.flag("same_padding", same_padding)
        conv = partial(Conv, use_bias=False, dtype=dtype, lowering=lowering, initial=kaiming_fan_out, rngs=rngs)

        rows, columns = rows + 2 * padding, columns + 2 * padding
        self.conv1 = conv(in_channels, 16, (3, 3), padding=AROUND)
        channels = 16
        for group, features in enumerate((16 * width, 32 * width, 64 * width)):
            for index in range(self.num_blocks):
                stride = 2 if group and not index else 1
                same = (halves_of_same(rows, stride), halves_of_same(columns, stride))
                around = same if pads_as_same else AROUND
                block = PreActBlock(channels, features, stride, padding=around, activation=activation, conv=conv)
                setattr(self, f"block{group + 1}_{index}", block)
                channels, rows, columns = features, strided(rows, stride), strided(columns, stride)
        self.norm = BatchNorm(channels)
        self.dense = Dense(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train=False, mask=None, groups=1
    ) -> Float[Array, "batch *classes"]:
        """Logits of images in [0, 1]; the other arguments are those of `BatchNorm`."""
        batch = {"train": train, "mask": mask, "groups": groups}
        x = jnp.pad(images, ((0, 0), *[(self.padding, self.padding)] * 2, (0, 0)))
        x = self.conv1(normalise(x, self.mean, self.std))
        for group in range(3):
            for index in range(self.num_blocks):
                x = getattr(self, f"block{group + 1}_{index}")(x, **batch)
        x = ACTIVATIONS[self.activation](self.norm(x, **batch))
        return as_logits(self.dense(mean_pool(x)))
