"""Frozen dataclasses as JAX pytrees that compare equal only with their own kind."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import jax

T = TypeVar("T", bound=type)


def register_dataclass(cls: T, *, data_fields: Sequence[str], meta_fields: Sequence[str]) -> T:
    """As `jax.tree_util.register_dataclass`, whose tree structures (JAX 0.10) hash by the class and compare without it:
    `restarts(attack, 9)` and `targeted_at(attack, 9)` are then the same key of `jax.jit`'s cache wherever their hashes
    fall together, about once in a hundred programs, and one of them runs the other's program."""

    def children(value: Any) -> tuple[Any, ...]:
        return tuple(getattr(value, name) for name in data_fields)

    def flatten_with_keys(value: Any):
        keys = map(jax.tree_util.GetAttrKey, data_fields)
        return tuple(zip(keys, children(value), strict=True)), meta(value)

    def meta(value: Any) -> tuple[Any, ...]:
        return tuple(getattr(value, name) for name in meta_fields)

    def unflatten(meta: Iterable[Any], children: Iterable[Any]) -> Any:
        value = object.__new__(cls)
        for name, held in zip((*data_fields, *meta_fields), (*children, *meta), strict=True):
            object.__setattr__(value, name, held)
        return value

    jax.tree_util.register_pytree_with_keys(
        cls, flatten_with_keys, unflatten, lambda value: (children(value), meta(value))
    )
    return cls
