"""The Flax NNX layers that the networks share: convolution, dense layer, layer norm, normalisation of pixels."""

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn.initializers import Initializer, variance_scaling
from jaxtyping import Array, Float

from jax_advtrain.models.convolution import Padding, conv2d

# uniform within 1 / sqrt(fan in), PyTorch's default: runs start where the reference implementation's do
pytorch_default = variance_scaling(1 / 3, "fan_in", "uniform")
kaiming_fan_in = variance_scaling(2.0, "fan_in", "normal")
kaiming_fan_out = variance_scaling(2.0, "fan_out", "normal")  # what residual networks start from


class Conv(nnx.Module):
    """2D convolution, NHWC images and HWIO kernels, zero padding given in full.

    Args:
      in_channels: C of the input.
      features: channels of the output.
      kernel_size: (rows, columns).
      strides: (vertical, horizontal).
      padding: ((before, after) of the height, (before, after) of the width).
      use_bias: adds one number per output channel.
      dtype: to compute in, by name; None computes in the common dtype of input and weights.
      lowering: `"auto"`, `"direct"`, `"flipped"` or `"patches"`, as in `convolution.conv2d`. It is resolved when the
        layer is called, so that a network made on one platform runs fast on another.
      initial: draws the kernel; by default uniform within 1 / sqrt(fan in). The bias starts at zero.
      rngs: gives the initial kernel. Weights are float32.
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        kernel_size: tuple[int, int],
        *,
        strides: tuple[int, int] = (1, 1),
        padding: Padding = ((0, 0), (0, 0)),
        use_bias: bool = True,
        dtype: str | None = None,
        lowering: str = "auto",
        initial: Initializer = pytorch_default,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(initial(rngs.params(), (*kernel_size, in_channels, features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32)) if use_bias else None
        self.strides, self.padding, self.dtype, self.lowering = strides, padding, dtype, lowering

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b oh ow f"]:
        dtype = self.dtype or jnp.result_type(x, self.kernel[...])
        y = conv2d(
            x.astype(dtype),
            self.kernel[...].astype(dtype),
            strides=self.strides,
            padding=self.padding,
            lowering=self.lowering,
        )
        return y if self.bias is None else y + self.bias[...].astype(dtype)


class Dense(nnx.Module):
    """x @ kernel + bias, kernel (in, out); initial weights, their dtype and `dtype` as in `Conv`."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        dtype: str | None = None,
        initial: Initializer = pytorch_default,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(initial(rngs.params(), (in_features, features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        dtype = self.dtype or jnp.result_type(x, self.kernel[...])
        return jnp.dot(x.astype(dtype), self.kernel[...].astype(dtype)) + self.bias[...].astype(dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, mean and variance over the last axis of each vector by itself.

    Computed in float32 (float64 for float64 input) and returned in the dtype of the input.
    """

    def __init__(self, num_features: int, *, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(-1, keepdims=True)
        var = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * lax.rsqrt(var + self.epsilon) * self.scale[...] + self.bias[...]).astype(x.dtype)


def normalise(
    images: Float[Array, "*shape channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*shape channels"]:
    """(images - mean) / std over the last axis; the identity costs nothing. In the dtype of the images."""
    if set(mean) == {0.0} and set(std) == {1.0}:
        return images
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def as_logits(output: Float[Array, "batch outputs"]) -> Float[Array, "batch *outputs"]:
    """Network outputs as losses want them: at least float32, and (B,) where there is one logit."""
    logits = output.astype(jnp.promote_types(output.dtype, jnp.float32))
    return logits[:, 0] if logits.shape[-1] == 1 else logits
