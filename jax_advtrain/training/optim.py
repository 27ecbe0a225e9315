"""The optimizer from plain config values, all of it optax."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from jax_advtrain.attacks.registry import unknown_name

DEFAULTS: dict[str, Any] = {
    "name": "adam",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "boundaries": (),
    "values": (),
    "warmup_epochs": 0.0,
    "momentum": 0.9,
    "nesterov": False,
    "peak": 0.5,
    "weight_decay": 0.0,
    "decay_kernels_only": False,
    "clip_norm": None,
}
OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("constant", "piecewise", "cosine", "cyclic")
# Their rate at every step depends on where training ends.
UNTIL_THE_END = ("cosine", "cyclic")


def schedule(config: Mapping[str, Any], *, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """Learning rate by step.

    "piecewise" takes `values[i]` from epoch `boundaries[i]` on; "cosine" falls to 0 at the last epoch; "cyclic" is one
    triangle: it rises from 0 to learning_rate over the part `peak` of all steps and falls to 0 at the last (fast AT's).
    `warmup_epochs` rises linearly from 0 before any but the last.

    Raises:
      ValueError: an unknown schedule, boundaries and values of different lengths, a peak outside [0, 1], a warm-up of
        "cyclic".
    """
    rate, warmup = float(config["learning_rate"]), int(config["warmup_epochs"] * steps_per_epoch)
    kind = config["schedule"]
    if kind not in SCHEDULES:
        raise ValueError(unknown_name("optimizer.schedule", kind, SCHEDULES))
    if kind == "piecewise":
        boundaries, values = tuple(config["boundaries"]), tuple(config["values"])
        if len(boundaries) != len(values) or list(boundaries) != sorted(set(boundaries)):
            raise ValueError(
                f"optimizer.boundaries {boundaries} and values {values}: give as many values as rising epochs"
            )
        starts = [int(boundary * steps_per_epoch) for boundary in boundaries]
        main = optax.join_schedules([optax.constant_schedule(value) for value in (rate, *values)], starts)
    elif kind == "cosine":
        main = optax.cosine_decay_schedule(rate, max(1, epochs * steps_per_epoch - warmup))
    elif kind == "cyclic":
        if not 0 <= config["peak"] <= 1:
            raise ValueError(
                f"optimizer.peak is {config['peak']}; give the part of all steps where the rate is largest"
            )
        if config["warmup_epochs"]:
            raise ValueError(
                "optimizer.warmup_epochs: the schedule cyclic rises by itself; give 0, and set optimizer.peak"
            )
        top = round(config["peak"] * epochs * steps_per_epoch)
        rise, fall = optax.linear_schedule(0.0, rate, max(1, top)), epochs * steps_per_epoch - top
        return optax.join_schedules([rise, optax.linear_schedule(rate, 0.0, max(1, fall))], [top])
    else:
        main = optax.constant_schedule(rate)
    if warmup and kind == "cosine":
        return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), main], [warmup])
    if warmup:
        rise = optax.linear_schedule(0.0, 1.0, warmup)
        return lambda step: rise(step) * main(step)
    return main


def build(config: Mapping[str, Any], *, steps_per_epoch: int, epochs: int) -> optax.GradientTransformation:
    """The optimizer: clipping, weight decay, adam or sgd, the schedule.

    Weight decay is added to the gradient for sgd (as in PyTorch) and decoupled for adam (adamw). With
    `decay_kernels_only` it leaves out biases and the scales of normalisation: arrays of one dimension.

    Raises:
      ValueError: an unknown name or field, or a value out of range.
    """
    if config["name"] not in OPTIMIZERS:
        raise ValueError(unknown_name("optimizer.name", config["name"], OPTIMIZERS))
    for name in ("learning_rate", "momentum", "weight_decay", "warmup_epochs"):
        if not 0 <= config[name] < float("inf"):
            raise ValueError(f"optimizer.{name} is {config[name]}; give a finite number from 0")
    rate = schedule(config, steps_per_epoch=steps_per_epoch, epochs=epochs)
    mask = _kernels if config["decay_kernels_only"] else None
    parts = []
    if config["clip_norm"] is not None:
        if not config["clip_norm"] > 0:
            raise ValueError(f"optimizer.clip_norm is {config['clip_norm']}; give a number above 0, or None")
        parts.append(optax.clip_by_global_norm(config["clip_norm"]))
    if config["name"] == "adam":
        decay = config["weight_decay"]
        parts.append(optax.adamw(rate, weight_decay=decay, mask=mask) if decay else optax.adam(rate))
    else:
        if config["weight_decay"]:
            parts.append(optax.add_decayed_weights(config["weight_decay"], mask=mask))
        parts.append(optax.sgd(rate, momentum=config["momentum"] or None, nesterov=config["nesterov"]))
    return optax.chain(*parts)


def _kernels(params: Any) -> Any:
    """Which weights are kernels: those of two dimensions or more."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
