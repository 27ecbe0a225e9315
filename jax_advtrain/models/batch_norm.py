"""Batch normalisation with a validity mask and statistics per virtual shard."""

import math

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias per channel (the last axis).

    In training mean and variance come from the batch: from its valid samples only, and from each of `groups` equal runs
    of consecutive samples by itself, so that a batch cut over devices gives what one device gives ("ghost" batch norm).
    Each call in training moves the running averages by the mean over the groups of what each group asks for; a group
    without a valid sample asks for no change and is normalised by the running averages. Since the groups are
    equally many on every device, `lax.pmean` of the new averages over devices is the update of one device.

    Statistics are computed and kept in float32 (float64 for float64 input), whatever dtype the network computes in.
    Batches are normalised by the biased variance; the running average takes the unbiased one, as PyTorch does.

    Args:
      num_features: channels.
      momentum: share of the running average that stays: new = momentum * old + (1 - momentum) * batch.
      epsilon: added to the variance.

    References:
      Ioffe and Szegedy 2015, arXiv:1502.03167; ghost batches: Hoffer et al. 2017, arXiv:1705.08741.
    """

    def __init__(self, num_features: int, *, momentum: float = 0.9, epsilon: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
        self.momentum, self.epsilon = momentum, epsilon

    def __call__(
        self,
        x: Float[Array, "batch *space channels"],
        *,
        train: bool = False,
        mask: Bool[Array, " batch"] | Float[Array, " batch"] | None = None,
        groups: int = 1,
    ) -> Float[Array, "batch *space channels"]:
        """Normalises; in training (`train=True`) also moves `mean` and `var`.

        Args:
          x: (B, ..., C), any float dtype, returned in the same.
          train: batch statistics instead of running averages.
          mask: (B,), nonzero = valid; None: all valid. Ignored unless `train`.
          groups: of consecutive samples with their own statistics. Ignored unless `train`.

        Raises:
          ValueError: groups that do not divide the batch, or a mask that is not (B,).
        """
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            return self._normalised_by_batch(wide, mask, groups).astype(x.dtype)
        return self._affine(wide - self.mean[...], self.var[...]).astype(x.dtype)

    def _normalised_by_batch(self, x, mask, groups):
        batch = x.shape[0]
        if groups < 1 or batch % groups:
            raise ValueError(f"batch of {batch} samples does not divide into {groups} groups for BatchNorm")
        mask = jnp.ones(batch, bool) if mask is None else mask
        if mask.shape != (batch,):
            raise ValueError(f"mask of shape {mask.shape} for a batch of {batch}: expected ({batch},)")

        places = math.prod(x.shape[1:-1])
        grouped = x.reshape(groups, batch // groups, places, x.shape[-1])
        valid = (mask != 0).reshape(groups, batch // groups, 1, 1)
        count = (valid.sum((1, 2, 3)) * places).astype(x.dtype)[:, None]  # numbers per channel

        def mean_of_valid(values):  # `where` and not `*`: the place of a masked sample may hold anything
            return jnp.where(valid, values, 0).sum((1, 2)) / jnp.maximum(count, 1)

        old_mean, old_var = self.mean[...], self.var[...]
        mean = jnp.where(count > 0, mean_of_valid(grouped), old_mean)
        centred = grouped - mean[:, None, None]
        var = jnp.where(count > 0, mean_of_valid(jnp.square(centred)), old_var)

        unbiased = jnp.where(count > 0, var * count / jnp.maximum(count - 1, 1), old_var)
        self.mean[...] = self._moved(old_mean, mean)
        self.var[...] = self._moved(old_var, unbiased)
        return self._affine(centred, var[:, None, None]).reshape(x.shape)

    def _affine(self, centred, var):
        return centred * (lax.rsqrt(var + self.epsilon) * self.scale[...]) + self.bias[...]

    def _moved(self, old, wanted):  # written so that a group that asks for `old` leaves it bit for bit
        change = (lax.stop_gradient(wanted) - old).mean(0)
        return (old + (1 - self.momentum) * change).astype(old.dtype)
