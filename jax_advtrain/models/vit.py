"""Vision transformers: ViT-S/16 and others of its form."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal
from jaxtyping import Array, Float

from jax_advtrain.models import fields
from jax_advtrain.models.layers import Conv, Dense, LayerNorm, as_logits, normalise

Tokens = Float[Array, "batch tokens width"]
_initial = normal(0.02)


class ViT(nnx.Module):
    """Patches and a class token with learned positions through blocks of attention; logits from the class token.

    The default fields are timm's vit_small_patch16_224: 22,050,664 parameters on 224x224x3 images and 1,000 classes.
    No dropout and no stochastic depth.

    Args:
      image_shape: (H, W, C), H and W multiples of patch_size.
      num_classes: outputs; 1 means one logit, squeezed to (B,).
      patch_size: height and width of a patch.
      width: length of a token; a multiple of `heads`.
      depth: number of blocks.
      heads: of the attention.
      mlp_ratio: the dense layers of a block are that many times as wide as a token.
      mean, std: subtracted from and dividing the pixels, in [0, 1] units; one number or one a channel.
      dtype: to compute in ("bfloat16", ...), None: that of images and weights. LayerNorm computes in at least float32;
        logits are at least float32.
      lowering: of the convolution that makes tokens of patches (`convolution.conv2d`).
      rngs: gives the initial weights.

    Raises:
      ValueError: a field of the wrong kind, or images that do not divide into patches.

    References:
      Dosovitskiy et al. 2021, arXiv:2010.11929; Touvron et al. 2021, arXiv:2012.12877 (the small size).
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_classes: int,
        *,
        patch_size: int = 16,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: int = 4,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        dtype: str | None = None,
        lowering: str = "auto",
        rngs: nnx.Rngs,
    ):
        image_height, image_width, in_channels = fields.image_sizes("vit", image_shape)
        size = fields.count("patch_size", patch_size)
        if image_height % size or image_width % size:
            raise ValueError(
                f"vit with model.patch_size = {size} takes images whose height and width it divides, "
                f"not {image_height}x{image_width}"
            )
        if fields.count("width", width) % fields.count("heads", heads):
            raise ValueError(f"model.width = {width}: expected a multiple of model.heads = {heads}")
        self.mean, self.std = fields.normalisation(mean, std, in_channels)
        self.depth, hidden = fields.count("depth", depth), width * fields.count("mlp_ratio", mlp_ratio)
        dtype, lowering = fields.compute_dtype(dtype), fields.lowering(lowering)

        patches, square = (image_height // size) * (image_width // size), (size, size)
        self.embed = Conv(in_channels, width, square, strides=square, dtype=dtype, lowering=lowering, rngs=rngs)
        self.class_token = nnx.Param(normal(1e-6)(rngs.params(), (width,), jnp.float32))
        self.positions = nnx.Param(_initial(rngs.params(), (patches + 1, width), jnp.float32))
        for index in range(depth):
            setattr(self, f"block{index}", Block(width, heads, hidden, dtype=dtype, rngs=rngs))
        self.norm = LayerNorm(width)
        self.head = Dense(width, num_classes, dtype=dtype, initial=_initial, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train=False, mask=None, groups=1
    ) -> Float[Array, "batch *classes"]:
        """Logits of images in [0, 1]; the other arguments are the networks' common ones and change nothing here."""
        x = self.embed(normalise(images, self.mean, self.std))
        x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])
        first = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first, x], axis=1) + self.positions[...].astype(x.dtype)
        for index in range(self.depth):
            x = getattr(self, f"block{index}")(x)
        return as_logits(self.head(self.norm(x[:, 0])))


class Block(nnx.Module):
    """Attention, then two dense layers with GELU between them; each after a LayerNorm and added to its input."""

    def __init__(self, width: int, heads: int, hidden: int, *, dtype: str | None, rngs: nnx.Rngs):
        dense = partial(Dense, dtype=dtype, initial=_initial, rngs=rngs)
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.qkv, self.project = dense(width, 3 * width), dense(width, width)
        self.dense1, self.dense2 = dense(width, hidden), dense(hidden, width)

    def __call__(self, x: Tokens) -> Tokens:
        x = x + self.project(self._attention(self.qkv(self.norm1(x))))
        return x + self.dense2(jax.nn.gelu(self.dense1(self.norm2(x)), approximate=False))

    def _attention(self, qkv: Float[Array, "batch tokens 3*width"]) -> Tokens:
        batch, tokens, triple = qkv.shape
        query, key, value = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, triple // (3 * self.heads)), 2, 0)
        mixed = jax.nn.dot_product_attention(query, key, value)  # softmax in float32; scaled by 1 / sqrt(head width)
        return mixed.reshape(batch, tokens, triple // 3)
