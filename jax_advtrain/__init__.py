"""Adversarial training of image models in JAX and Flax."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`jax_advtrain.load`, imported when it is asked for: the attacks need no network library."""
    if name == "load":
        from jax_advtrain.models import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
