"""Residual networks: ResNet-18 to -152, for ImageNet or for small images."""

from collections.abc import Sequence
from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float

from jax_advtrain.models import fields
from jax_advtrain.models.batch_norm import BatchNorm
from jax_advtrain.models.blocks import AROUND, BasicBlock, Bottleneck
from jax_advtrain.models.layers import Conv, Dense, as_logits, kaiming_fan_out, normalise
from jax_advtrain.models.pooling import max_pool, mean_pool

_STAGES = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nnx.Module):
    """A stem, four stages of residual blocks at strides 1, 2, 2, 2 (channels doubled each time), mean over places.

    Layer by layer torchvision's networks (stem "imagenet": 11,689,512 parameters at depth 18 and 25,557,032 at depth
    50, for 1,000 classes) and those that papers train on CIFAR-10 (stem "cifar": 11,173,962 at depth 18, 10 classes).

    Args:
      image_shape: (H, W, C), any sizes.
      num_classes: outputs; 1 means one logit, squeezed to (B,).
      depth: 18, 34, 50, 101 or 152.
      width: channels of the first stage.
      stem: "imagenet": 7x7 convolution of stride 2, 3x3 max pooling of stride 2; "cifar": 3x3 convolution.
      mean, std: subtracted from and dividing the pixels, in [0, 1] units; one number or one a channel.
      dtype: to compute in ("bfloat16", ...), None: that of images and weights. Logits are at least float32.
      lowering: of the convolutions (`convolution.conv2d`).
      rngs: gives the initial weights.

    Raises:
      ValueError: a field of the wrong kind, or images without height, width and channels.

    References:
      He et al. 2016, arXiv:1512.03385.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_classes: int,
        *,
        depth: int = 18,
        width: int = 64,
        stem: str = "cifar",
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        dtype: str | None = None,
        lowering: str = "auto",
        rngs: nnx.Rngs,
    ):
        _, _, in_channels = fields.image_sizes("resnet", image_shape)
        self.mean, self.std = fields.normalisation(mean, std, in_channels)
        self.stem = fields.choice("stem", stem, ("imagenet", "cifar"))
        block, self.num_blocks = _STAGES[fields.choice("depth", depth, _STAGES)]
        width, dtype, lowering = fields.count("width", width), fields.compute_dtype(dtype), fields.lowering(lowering)
        conv = partial(Conv, use_bias=False, dtype=dtype, lowering=lowering, initial=kaiming_fan_out, rngs=rngs)

        if stem == "imagenet":
            self.conv1 = conv(in_channels, width, (7, 7), strides=(2, 2), padding=((3, 3), (3, 3)))
        else:
            self.conv1 = conv(in_channels, width, (3, 3), padding=AROUND)
        self.norm1 = BatchNorm(width)
        channels = width
        for stage, num_blocks in enumerate(self.num_blocks):
            for index in range(num_blocks):
                stride = 2 if stage and not index else 1
                setattr(self, f"layer{stage + 1}_{index}", block(channels, width * 2**stage, stride, conv=conv))
                channels = width * 2**stage * block.expansion
        self.dense = Dense(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train=False, mask=None, groups=1
    ) -> Float[Array, "batch *classes"]:
        """Logits of images in [0, 1]; the other arguments are those of `BatchNorm`."""
        batch = {"train": train, "mask": mask, "groups": groups}
        x = normalise(images, self.mean, self.std)
        x = jax.nn.relu(self.norm1(self.conv1(x), **batch))
        if self.stem == "imagenet":
            x = max_pool(x, 3, 2, padding=1)
        for stage, num_blocks in enumerate(self.num_blocks):
            for index in range(num_blocks):
                x = getattr(self, f"layer{stage + 1}_{index}")(x, **batch)
        return as_logits(self.dense(mean_pool(x)))
