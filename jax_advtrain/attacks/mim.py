"""MIM: the ascent along a momentum of gradients."""

import dataclasses

import jax

from jax_advtrain.attacks import losses
from jax_advtrain.attacks.pgd import PGD, pgd
from jax_advtrain.attacks.protocol import check_number


def mim(
    *,
    norm: str = "linf",
    epsilon: jax.typing.ArrayLike,
    num_steps: int = 10,
    decay: jax.typing.ArrayLike = 1.0,
    step_size: jax.typing.ArrayLike | None = None,
    alpha: jax.typing.ArrayLike | None = None,
    loss: str | losses.LossFunction | losses.Loss = "ce",
    start: str = "clean",
    **settings,
) -> PGD:
    """MIM (MI-FGSM): m <- decay * m + grad / ||grad||_1, and a step of PGD along m in place of the gradient.

    The direction of m is its sign in "linf", m / ||m||_2 in "l2", and the sign at its largest entries in "l1". A
    gradient of zero adds nothing, and the ascent goes on along what m holds.

    Args:
      norm: "linf", "l2" or "l1".
      epsilon: radius in pixel units of [0, 1]: a scalar or one a sample. 0 returns the image bit for bit.
      num_steps: number of updates.
      decay: what of the momentum is kept at each step: a scalar or one a sample, from 0; 0 is PGD, 1 the paper's.
      step_size: absolute step, a scalar or one a sample; excludes `alpha`.
      alpha: relative step: step_size = alpha * epsilon / num_steps. Default 1 where neither is given: the path is just
        as long as the radius.
      loss, start: as in `pgd`.
      **settings: the other settings of `pgd`, but for the optimizer.

    Returns:
      An attack, at the cost of PGD: 2 num_steps + 1 passes, and one image more of memory.

    Raises:
      ValueError: a negative or NaN decay, an optimizer, or what `pgd` raises.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> attack = mim(norm="linf", epsilon=0.1, num_steps=4)
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 0.0]])
      >>> x = jnp.array([[0.5, 0.5]])
      >>> round(attack(jax.random.key(0), lambda x: x @ weights, x, jnp.array([0]))[0, 0].item(), 6)
      0.4

    References:
      Dong et al., Boosting adversarial attacks with momentum, CVPR 2018. Theirs divides by the mean of |grad|, not by
      the sum: m is so many times larger, and its direction the same. It has no random start and no "l1".
    """
    check_number("decay", decay)
    if settings.get("optimizer") is not None:
        raise ValueError("mim climbs along its own momentum; give an optimizer to pgd instead")
    if alpha is None and step_size is None:
        alpha = 1.0
    ascent = pgd(
        norm=norm,
        epsilon=epsilon,
        num_steps=num_steps,
        step_size=step_size,
        alpha=alpha,
        loss=loss,
        start=start,
        **settings,
    )
    return dataclasses.replace(ascent, decay=decay)
