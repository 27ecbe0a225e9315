"""How robust the model is while it trains: a few attacks on a fixed part of the validation set, each epoch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jax_advtrain.data import Dataset
from jax_advtrain.evaluation.attack_dataset import attack_dataset, first, name_seed
from jax_advtrain.evaluation.suite import Member


class Monitored(NamedTuple):
    """Clean accuracy of the whole validation set; robust accuracy of the monitored part of it."""

    clean_accuracy: float
    robust_accuracy: float


def monitor(
    logits_fn: Callable[[jax.Array], jax.Array],
    data: Dataset,
    num_samples: int,
    members: Sequence[Member],
    mesh: Mesh,
    *,
    norm: str,
    epsilon: float,
    seed: int,
    batch_size: int = 256,
) -> Monitored:
    """A sample counts as robust if it is right clean and under every member; its randomness is the same each epoch.

    Args:
      data: the validation set; the first `num_samples` are attacked.
      norm, epsilon: of all members, in pixel units of [0, 1].
    """
    clean = attack_dataset(None, logits_fn, data, mesh, batch_size=batch_size)
    part = first(data, num_samples)
    robust = clean.is_right[: len(part)]
    for member in members:
        found = attack_dataset(
            member.build(norm),
            logits_fn,
            part,
            mesh,
            norm=norm,
            epsilon=epsilon,
            seed=name_seed(seed, "monitor " + member.label),
            batch_size=batch_size,
        )
        robust = robust & found.is_right
    return Monitored(float(np.mean(clean.is_right)), float(np.mean(robust)))


def monitored_radius(config: Any) -> tuple[str, float]:
    """Norm and radius of the monitor: as given, else the defense's, the evaluation's middle one, or the ceiling."""
    defense = config.defense
    norm = config.monitor.norm or defense.get("norm", "linf")
    evaluated = tuple(config.eval[f"epsilons_{norm}"])
    middle = evaluated[len(evaluated) // 2] if evaluated else defense.get("eps_max", 0.1)
    return norm, float(config.monitor.epsilon or defense.get("epsilon") or middle)
