"""Expectation over transformation: gradients averaged over the draws of a model that answers at random."""

import dataclasses
from typing import Any

from jax_advtrain.attacks.combine import check_attack, over_bases
from jax_advtrain.attacks.protocol import Attack, check_count


def eot(attack: Attack, num_passes: int) -> Attack:
    """The attack, with each gradient the average over `num_passes` draws of a stochastic model.

    grad = 1/n sum_i grad loss(f(x, key_i)), for models made by `stochastic(function)`.

    Args:
      attack: pgd, mim, apgd, or a composition of such.
      num_passes: n; a step costs n times the passes.

    Raises:
      ValueError: num_passes < 1, or an attack that ascends no averaged gradient.

    Example:
      >>> from jax_advtrain.attacks import pgd
      >>> eot(pgd(norm="linf", epsilon=0.3, num_steps=10), 20).passes
      401

    References:
      Athalye et al., Synthesizing robust adversarial examples, ICML 2018.
    """
    check_count("num_passes", num_passes)

    def averaged(base: Any) -> Any:
        if not hasattr(base, "eot_passes"):
            raise ValueError(f"eot needs attacks that average gradients (pgd, mim, apgd), not {type(base).__name__}")
        return dataclasses.replace(base, eot_passes=num_passes)

    return over_bases(averaged, check_attack("eot", attack))
