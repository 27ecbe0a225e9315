"""Residual blocks: the original ones (convolution, norm, activation) and those that activate first.

All take `conv`, a `Conv` with everything but sizes given, and are called like the networks: `train`, `mask` and
`groups` are the arguments of `BatchNorm`.
"""

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float

from jax_advtrain.models.batch_norm import BatchNorm
from jax_advtrain.models.convolution import Padding
from jax_advtrain.models.layers import Conv

ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu}
AROUND: Padding = ((1, 1), (1, 1))  # of a 3x3 convolution, as PyTorch pads at any stride
MakeConv = Callable[..., Conv]
Images = Float[Array, "batch height width channels"]


def strided(size: int, stride: int) -> int:
    """What a padded convolution leaves of `size` pixels."""
    return -(-size // stride)


def halves_of_same(size: int, stride: int) -> tuple[int, int]:
    """The padding of a 3x3 convolution, before and behind, that TensorFlow calls "SAME"."""
    total = max((strided(size, stride) - 1) * stride + 3 - size, 0)
    return total // 2, total - total // 2


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions; ReLU after the sum with the shortcut.

    References:
      He et al. 2016, arXiv:1512.03385.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, *, conv: MakeConv):
        strides = (stride, stride)
        self.conv1 = conv(in_channels, channels, (3, 3), strides=strides, padding=AROUND)
        self.norm1 = BatchNorm(channels)
        self.conv2 = conv(channels, channels, (3, 3), padding=AROUND)
        self.norm2 = BatchNorm(channels)
        self.shortcut = _projection(in_channels, channels, stride, conv)

    def __call__(self, x: Images, **batch) -> Images:
        y = jax.nn.relu(self.norm1(self.conv1(x), **batch))
        y = self.norm2(self.conv2(y), **batch)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, **batch)))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions, the last to four times the channels; the 3x3 one has the stride ("v1.5").

    References:
      He et al. 2016, arXiv:1512.03385, with the stride where torchvision puts it.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, *, conv: MakeConv):
        features = self.expansion * channels
        self.conv1 = conv(in_channels, channels, (1, 1))
        self.norm1 = BatchNorm(channels)
        self.conv2 = conv(channels, channels, (3, 3), strides=(stride, stride), padding=AROUND)
        self.norm2 = BatchNorm(channels)
        self.conv3 = conv(channels, features, (1, 1))
        self.norm3 = BatchNorm(features)
        self.shortcut = _projection(in_channels, features, stride, conv)

    def __call__(self, x: Images, **batch) -> Images:
        y = jax.nn.relu(self.norm1(self.conv1(x), **batch))
        y = jax.nn.relu(self.norm2(self.conv2(y), **batch))
        y = self.norm3(self.conv3(y), **batch)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, **batch)))


def _projection(in_channels: int, features: int, stride: int, conv: MakeConv) -> "Projection | None":
    return Projection(in_channels, features, stride, conv) if stride > 1 or in_channels != features else None


class Projection(nnx.Module):
    """The shortcut where sizes change: a 1x1 convolution with its norm."""

    def __init__(self, in_channels: int, features: int, stride: int, conv: MakeConv):
        self.conv = conv(in_channels, features, (1, 1), strides=(stride, stride))
        self.norm = BatchNorm(features)

    def __call__(self, x: Images, **batch) -> Images:
        return self.norm(self.conv(x), **batch)


class PreActBlock(nnx.Module):
    """Norm, activation and 3x3 convolution, twice; nothing after the sum.

    Where sizes change the shortcut is a 1x1 convolution without norm.

    Args:
      in_channels, channels: of input and output.
      stride: of the first convolution and the shortcut.
      padding: of the first convolution.
      activation: a key of `ACTIVATIONS`.
      activated_shortcut: the shortcut's convolution starts from the activated input; False: from the input itself.
      conv: makes a convolution.

    References:
      He et al. 2016, arXiv:1603.05027; Zagoruyko and Komodakis 2016, arXiv:1605.07146 (wide).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        *,
        padding: Padding = AROUND,
        activation: str = "relu",
        activated_shortcut: bool = True,
        conv: MakeConv,
    ):
        strides = (stride, stride)
        self.norm1 = BatchNorm(in_channels)
        self.conv1 = conv(in_channels, channels, (3, 3), strides=strides, padding=padding)
        self.norm2 = BatchNorm(channels)
        self.conv2 = conv(channels, channels, (3, 3), padding=AROUND)
        changes = stride > 1 or in_channels != channels
        self.shortcut = conv(in_channels, channels, (1, 1), strides=strides) if changes else None
        self.activation, self.activated_shortcut = activation, activated_shortcut

    def __call__(self, x: Images, **batch) -> Images:
        activate = ACTIVATIONS[self.activation]
        activated = activate(self.norm1(x, **batch))
        y = self.conv2(activate(self.norm2(self.conv1(activated), **batch)))
        if self.shortcut is None:
            return y + x
        return y + self.shortcut(activated if self.activated_shortcut else x)
