"""Residual networks that activate first, PreActResNet-18 and -34: the common ones of robust overfitting papers."""

from collections.abc import Sequence
from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, Float

from jax_advtrain.models import fields
from jax_advtrain.models.batch_norm import BatchNorm
from jax_advtrain.models.blocks import AROUND, PreActBlock
from jax_advtrain.models.layers import Conv, Dense, as_logits, kaiming_fan_out, normalise
from jax_advtrain.models.pooling import mean_pool

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class PreActResNet(nnx.Module):
    """A 3x3 convolution, four stages of `PreActBlock`s at strides 1, 2, 2, 2 (channels doubled), mean over places.

    At depth 18 on 3 channels and 10 classes it has 11,171,146 parameters, with `final_norm` 11,172,170.

    Args:
      image_shape: (H, W, C), any sizes.
      num_classes: outputs; 1 means one logit, squeezed to (B,).
      depth: 18 or 34.
      width: channels of the first stage.
      final_norm: BatchNorm and ReLU before the mean over places, as Rice et al. have it; the widespread CIFAR code and
        Wong et al. (fast adversarial training) have none.
      activated_shortcut: a changing shortcut starts from the activated input; False: from the input itself, which is
        what RobustBench's Wong2020 does.
      mean, std: subtracted from and dividing the pixels, in [0, 1] units; one number or one a channel.
      dtype: to compute in ("bfloat16", ...), None: that of images and weights. Logits are at least float32.
      lowering: of the convolutions (`convolution.conv2d`).
      rngs: gives the initial weights.

    Raises:
      ValueError: a field of the wrong kind, or images without height, width and channels.

    References:
      He et al. 2016, arXiv:1603.05027; Rice et al. 2020, arXiv:2002.11569.
    """

    def __init__(
        self,
        image_shape: tuple[int, ...],
        num_classes: int,
        *,
        depth: int = 18,
        width: int = 64,
        final_norm: bool = False,
        activated_shortcut: bool = True,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        dtype: str | None = None,
        lowering: str = "auto",
        rngs: nnx.Rngs,
    ):
        _, _, in_channels = fields.image_sizes("preact_resnet", image_shape)
        self.mean, self.std = fields.normalisation(mean, std, in_channels)
        self.num_blocks = _STAGES[fields.choice("depth", depth, _STAGES)]
        width, dtype, lowering = fields.count("width", width), fields.compute_dtype(dtype), fields.lowering(lowering)
        with_norm = fields.flag("final_norm", final_norm)
        activated = fields.flag("activated_shortcut", activated_shortcut)
        conv = partial(Conv, use_bias=False, dtype=dtype, lowering=lowering, initial=kaiming_fan_out, rngs=rngs)

        self.conv1 = conv(in_channels, width, (3, 3), padding=AROUND)
        channels = width
        for stage, num_blocks in enumerate(self.num_blocks):
            for index in range(num_blocks):
                stride, features = 2 if stage and not index else 1, width * 2**stage
                block = PreActBlock(channels, features, stride, activated_shortcut=activated, conv=conv)
                setattr(self, f"layer{stage + 1}_{index}", block)
                channels = features
        self.norm = BatchNorm(channels) if with_norm else None
        self.dense = Dense(channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train=False, mask=None, groups=1
    ) -> Float[Array, "batch *classes"]:
        """Logits of images in [0, 1]; the other arguments are those of `BatchNorm`."""
        batch = {"train": train, "mask": mask, "groups": groups}
        x = self.conv1(normalise(images, self.mean, self.std))
        for stage, num_blocks in enumerate(self.num_blocks):
            for index in range(num_blocks):
                x = getattr(self, f"layer{stage + 1}_{index}")(x, **batch)
        if self.norm is not None:
            x = jax.nn.relu(self.norm(x, **batch))
        return as_logits(self.dense(mean_pool(x)))
