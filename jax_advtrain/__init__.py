"""Adversarial training of image models in JAX and Flax."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load` and `train_and_evaluate`, imported when they are asked for: the attacks need no network library."""
    if name == "load":
        from jax_advtrain.models import load

        return load
    if name == "train_and_evaluate":
        from jax_advtrain.studies.runs import train_and_evaluate

        return train_and_evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
