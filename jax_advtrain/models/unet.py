"""The U-Net of medical segmentation, in two and three dimensions: class scores for every pixel or voxel."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from jax_advtrain.models import fields
from jax_advtrain.models.layers import Conv, Dense, kaiming_fan_in, normalise

_SLOPE = 0.01  # of the leaky ReLU, as nnU-Net's


class UNet(nnx.Module):
    """Down over `levels` resolutions by strided convolutions, up again by transposed ones, with skips between.

    Two 3x3 (3x3x3) convolutions a level, each followed by instance norm and leaky ReLU, as in nnU-Net's plain network;
    the channels double at each level up to `max_width`. Nothing depends on the other samples of a batch.

    Args:
      image_shape: (H, W, C) or (H, W, D, C), each side a multiple of 2^(levels - 1).
      num_classes: outputs a pixel, 2 or more.
      width: channels of the first level.
      max_width: most channels of a level.
      levels: resolutions, 2 or more.
      deep_supervision: in training also give the class scores of the coarser resolutions.
      mean, std: subtracted from and dividing the pixels, in [0, 1] units; one number or one a channel.
      dtype: to compute in ("bfloat16", ...), None: that of images and weights. Class scores are at least float32.
      lowering: of the convolutions in two dimensions (`convolution.conv2d`); those in three are XLA's own.
      rngs: gives the initial weights.

    Raises:
      ValueError: a field of the wrong kind; images of other axes or sizes; fewer than two classes.

    References:
      Ronneberger et al. 2015, arXiv:1505.04597; Isensee et al. 2021 (nnU-Net), doi:10.1038/s41592-020-01008-z.
    """

    is_dense = True  # one output a pixel, for labels that are so too

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_classes: int,
        *,
        width: int = 32,
        max_width: int = 320,
        levels: int = 4,
        deep_supervision: bool = False,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        dtype: str | None = None,
        lowering: str = "auto",
        rngs: nnx.Rngs,
    ):
        self.levels, self.deep_supervision = (
            fields.count("levels", levels, 2),
            fields.flag("deep_supervision", deep_supervision),
        )
        width, max_width = fields.count("width", width), fields.count("max_width", max_width)
        dtype, lowering = fields.compute_dtype(dtype), fields.lowering(lowering)
        sides, in_channels = _check_sizes(image_shape, self.levels)
        if num_classes < 2:
            raise ValueError(
                f"unet gives one score a class for each pixel; num_classes is {num_classes}, not 2 or more"
            )
        self.mean, self.std = fields.normalisation(mean, std, in_channels)
        widths = [min(width * 2**level, max_width) for level in range(self.levels)]
        block = partial(_Block, len(sides), dtype=dtype, lowering=lowering, rngs=rngs)

        self.down0 = block(in_channels, widths[0], 1)
        for level in range(1, self.levels):
            setattr(self, f"down{level}", block(widths[level - 1], widths[level], 2))
        for level in range(self.levels - 1):
            setattr(self, f"rise{level}", _Rise(len(sides), widths[level + 1], widths[level], dtype=dtype, rngs=rngs))
            setattr(self, f"up{level}", block(2 * widths[level], widths[level], 1))
            if not level or self.deep_supervision:
                setattr(self, f"head{level}", Dense(widths[level], num_classes, dtype=dtype, rngs=rngs))

    def __call__(self, images: Float[Array, "batch *space channels"], *, train=False, mask=None, groups=1) -> Any:
        """Class scores (B, *space, classes) of images in [0, 1]; `mask` and `groups` change nothing.

        In training with deep supervision: a tuple, the scores of the images' own resolution first, then those of the
        coarser ones, each side half as long as that before.
        """
        x = normalise(images, self.mean, self.std)
        skips = []
        for level in range(self.levels):
            x = getattr(self, f"down{level}")(x)
            skips.append(x)
        found = []
        for level in reversed(range(self.levels - 1)):
            x = jnp.concatenate([skips[level], getattr(self, f"rise{level}")(x)], axis=-1)
            x = getattr(self, f"up{level}")(x)
            if not level or (train and self.deep_supervision):
                scores = getattr(self, f"head{level}")(x)
                found.append(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)))
        return tuple(reversed(found)) if len(found) > 1 else found[0]


class InstanceNorm(nnx.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, mean and variance over the places of each sample and channel.

    Computed in float32 (float64 for float64 input) and returned in the dtype of the input.
    """

    def __init__(self, num_features: int, *, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "batch *space c"]) -> Float[Array, "batch *space c"]:
        places = tuple(range(1, x.ndim - 1))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(places, keepdims=True)
        var = jnp.square(centred).mean(places, keepdims=True)
        return (centred * lax.rsqrt(var + self.epsilon) * self.scale[...] + self.bias[...]).astype(x.dtype)


class _Block(nnx.Module):
    """Twice convolution, instance norm, leaky ReLU; the first convolution has the stride."""

    def __init__(self, axes: int, in_channels: int, features: int, stride: int, *, dtype, lowering, rngs: nnx.Rngs):
        conv = partial(_conv, axes, dtype=dtype, lowering=lowering, rngs=rngs)
        self.conv1, self.norm1 = conv(in_channels, features, stride), InstanceNorm(features)
        self.conv2, self.norm2 = conv(features, features, 1), InstanceNorm(features)

    def __call__(self, x):
        x = jax.nn.leaky_relu(self.norm1(self.conv1(x)), _SLOPE)
        return jax.nn.leaky_relu(self.norm2(self.conv2(x)), _SLOPE)


def _conv(axes: int, in_channels: int, features: int, stride: int, *, dtype, lowering, rngs: nnx.Rngs) -> nnx.Module:
    """A convolution with kernels of length 3 and a rim of zeros; without bias, which the norm would take out again."""
    if axes == 3:
        return _VolumeConv(in_channels, features, stride, dtype=dtype, rngs=rngs)
    return Conv(
        in_channels,
        features,
        (3, 3),
        strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        use_bias=False,
        dtype=dtype,
        lowering=lowering,
        initial=kaiming_fan_in,
        rngs=rngs,
    )


class _VolumeConv(nnx.Module):
    """The 3D convolution: NDHWC volumes and DHWIO kernels."""

    def __init__(self, in_channels: int, features: int, stride: int, *, dtype: str | None, rngs: nnx.Rngs):
        self.kernel = nnx.Param(kaiming_fan_in(rngs.params(), (3, 3, 3, in_channels, features), jnp.float32))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x):
        dtype = self.dtype or jnp.result_type(x, self.kernel[...])
        return lax.conv_general_dilated(
            x.astype(dtype),
            self.kernel[...].astype(dtype),
            (self.stride,) * 3,
            ((1, 1),) * 3,
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )


class _Rise(nnx.Module):
    """The transposed convolution of length and stride 2: each place becomes 2 x 2 (x 2) by one matrix product."""

    def __init__(self, axes: int, in_channels: int, features: int, *, dtype: str | None, rngs: nnx.Rngs):
        self.dense = Dense(in_channels, 2**axes * features, dtype=dtype, rngs=rngs)
        self.features = features

    def __call__(self, x):
        batch, *sides, _ = x.shape
        axes = len(sides)
        parts = self.dense(x).reshape(batch, *sides, *(2,) * axes, self.features)
        # (B, h, w, 2, 2, f) -> (B, h, 2, w, 2, f)
        order = [0, *(axis for pair in range(axes) for axis in (1 + pair, 1 + axes + pair)), 2 * axes + 1]
        return parts.transpose(order).reshape(batch, *(2 * side for side in sides), self.features)


def _check_sizes(image_shape: tuple[int, ...], levels: int) -> tuple[tuple[int, ...], int]:
    """(sides, channels) of the images."""
    if len(image_shape) not in (3, 4):
        raise ValueError(f"unet takes images (H, W, channels) or (H, W, D, channels), not {tuple(image_shape)}")
    *sides, channels = image_shape
    factor = 2 ** (levels - 1)
    if any(side % factor for side in sides):
        raise ValueError(
            f"unet of {levels} levels takes sides that are multiples of {factor}, not {tuple(sides)}; "
            "set data.image_size, or fewer model.levels"
        )
    if math.prod(sides) <= factor ** len(sides):
        raise ValueError(f"unet of {levels} levels leaves one place of {tuple(sides)}; set fewer model.levels")
    return tuple(sides), channels
