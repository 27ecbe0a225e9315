"""One 2D convolution, several lowerings; which one runs is decided here, by platform, and nowhere else.

Attacks differentiate a network with respect to its images inside a `lax` loop. There XLA:CPU misses the rewrite that
makes the input gradient of a convolution fast (it recognises the form at the top level of a program only), so that
PGD written plainly costs up to twice its gradients. The lowerings below avoid that on the CPU; they are equal in value
and in both gradients up to rounding. Other platforms take `"direct"`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Lowering = Literal["direct", "flipped", "patches"]
LOWERINGS: tuple[str, ...] = get_args(Lowering)
Padding = tuple[tuple[int, int], tuple[int, int]]
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv_lowering(
    kernel_shape: Sequence[int], strides: tuple[int, int] = (1, 1), platform: str | None = None
) -> Lowering:
    """The lowering of one convolution: the only place that knows about platforms.

    Args:
      kernel_shape: (height, width, in channels, out channels).
      strides: of the convolution, (vertical, horizontal).
      platform: `"cpu"`, `"gpu"`, `"tpu"`; by default the platform that JAX places computations on.

    Returns:
      `"direct"`, `"flipped"` or `"patches"` (see `conv2d`). On the CPU, by measurement of forward + input gradient in
      a loop: `"patches"` where a pixel is copied at most 4 times (strides, 1x1) or a patch has at most 32 numbers
      (first layers), there 1.0-2.5x faster than `"flipped"`; elsewhere `"flipped"`, 1.2-3.6x faster than `"patches"`.
    """
    if (platform or jax.default_backend()) != "cpu":
        return "direct"
    rows, columns, channels, _ = kernel_shape
    copies = rows * columns / (strides[0] * strides[1])
    return "patches" if copies <= 4 or rows * columns * channels <= 32 else "flipped"


def conv2d(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    lowering: str = "auto",
) -> Float[Array, "batch out_height out_width features"]:
    """Cross-correlates images with a kernel (what every framework calls a convolution).

    Args:
      images: (B, H, W, C), any float dtype.
      kernel: (rows, columns, C, F), the same dtype.
      strides: vertical and horizontal step.
      padding: zeros ((before, after) of the height, (before, after) of the width).
      lowering: `"direct"` is XLA's own convolution and gradients; `"flipped"` writes the input gradient as an ordinary
        NHWC/HWIO/NHWC convolution (reverse mode only: no `jax.jvp`); `"patches"` gathers patches (concatenated slices,
        or a transposition where they tile the image) and takes one matrix product; `"auto"` asks `conv_lowering`.

    Returns:
      (B, H', W', F) in the dtype of the images; H' = (H + before + after - rows) // stride + 1.

    Raises:
      ValueError: an unknown lowering, ranks or channels that do not fit, or a kernel larger than the padded image.
    """
    if images.ndim != 4 or kernel.ndim != 4 or images.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"convolution of images {images.shape} with a kernel {kernel.shape}: "
            "expected (batch, height, width, channels) and (rows, columns, channels, features)"
        )
    if min(_out_size(images.shape, kernel.shape, strides, padding)) < 1:
        raise ValueError(
            f"images of {images.shape[1]}x{images.shape[2]} with padding {padding} are smaller than "
            f"the {kernel.shape[0]}x{kernel.shape[1]} kernel"
        )
    if lowering == "auto":
        lowering = conv_lowering(kernel.shape, strides)
    if lowering not in _FUNCTIONS:
        raise ValueError(f"unknown convolution lowering {lowering!r}; valid: auto, {', '.join(LOWERINGS)}")
    return _FUNCTIONS[lowering](images, kernel, strides, padding)


def _out_size(images_shape, kernel_shape, strides, padding):
    return tuple(
        (images_shape[1 + axis] + sum(padding[axis]) - kernel_shape[axis]) // strides[axis] + 1 for axis in (0, 1)
    )


def _direct(images, kernel, strides, padding):
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _patches(images, kernel, strides, padding):
    out_height, out_width = _out_size(images.shape, kernel.shape, strides, padding)
    if strides == kernel.shape[:2] and padding == ((0, 0), (0, 0)):
        return _tiles(images, kernel, out_height, out_width)
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    batch, _, _, channels = images.shape
    slices = [
        lax.slice(
            padded,
            (0, row, column, 0),
            (batch, row + (out_height - 1) * strides[0] + 1, column + (out_width - 1) * strides[1] + 1, channels),
            (1, *strides, 1),
        )
        for row in range(kernel.shape[0])
        for column in range(kernel.shape[1])
    ]
    return jnp.dot(jnp.concatenate(slices, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


def _tiles(images, kernel, out_height, out_width):
    # patches that neither overlap nor leave gaps (a transformer's): a transposition instead of 16 x 16 slices
    rows, columns, channels, features = kernel.shape
    tiles = images[:, : out_height * rows, : out_width * columns]
    tiles = tiles.reshape(images.shape[0], out_height, rows, out_width, columns, channels).swapaxes(2, 3)
    patches = tiles.reshape(images.shape[0], out_height, out_width, rows * columns * channels)
    return jnp.dot(patches, kernel.reshape(-1, features))


def _flipped(images, kernel, strides, padding):
    # Under shard_map a gradient must vary over the same mesh axes as what it belongs to, and JAX cannot see into a
    # custom rule. So both operands are made to vary over the union before it (the sum over devices is then the
    # transpose of that), by adding an empty sum, which XLA removes: the names that would ask JAX for the axes differ
    # from one version to the next.
    def empty_sum(array):
        return lax.stop_gradient(array[:0].sum())

    return _flipped_rule(images + empty_sum(kernel), kernel + empty_sum(images), strides, padding)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _flipped_rule(images, kernel, strides, padding):
    return _direct(images, kernel, strides, padding)


def _flipped_forward(images, kernel, strides, padding):
    return _direct(images, kernel, strides, padding), (images, kernel)


def _flipped_backward(strides, padding, residuals, cotangent):
    images, kernel = residuals
    before = [kernel.shape[axis] - 1 - padding[axis][0] for axis in (0, 1)]
    dilated = [(cotangent.shape[1 + axis] - 1) * strides[axis] + 1 for axis in (0, 1)]
    # what remains so that the result has the height and width of the images; negative crops, which XLA takes
    after = [images.shape[1 + axis] + kernel.shape[axis] - 1 - dilated[axis] - before[axis] for axis in (0, 1)]
    images_gradient = lax.conv_general_dilated(
        cotangent,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        window_strides=(1, 1),
        padding=tuple(zip(before, after, strict=True)),
        lhs_dilation=strides,
        dimension_numbers=_LAYOUT,
    )
    (kernel_gradient,) = jax.linear_transpose(lambda k: _direct(images, k, strides, padding), kernel)(cotangent)
    return images_gradient, kernel_gradient


_flipped_rule.defvjp(_flipped_forward, _flipped_backward)
_FUNCTIONS = {"direct": _direct, "flipped": _flipped, "patches": _patches}
