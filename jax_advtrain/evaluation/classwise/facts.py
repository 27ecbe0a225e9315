"""The parts of a diagnosis as plain values for JSON; NaN becomes None."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_advtrain.evaluation.classwise import flow as flows
from jax_advtrain.evaluation.classwise.confidence import Confidence, Temperatures
from jax_advtrain.evaluation.classwise.consistency import Agreement
from jax_advtrain.evaluation.classwise.epochs import Epochs
from jax_advtrain.evaluation.classwise.gains import Gain
from jax_advtrain.evaluation.classwise.head import NormRelation
from jax_advtrain.evaluation.classwise.per_class import ClassTable, spread, weakness
from jax_advtrain.evaluation.classwise.superclasses import Superclasses

SCHEMA_VERSION = 1


def plain(value: Any) -> Any:
    """Numpy and NamedTuples to JSON's own types."""
    if hasattr(value, "_asdict"):
        return {name: plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def head(
    model: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    class_names: Sequence[str],
    split: str,
    norm: str,
    epsilon: float,
    settings: Mapping[str, Mapping[str, Any]],
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """Which model, which samples, which attacks."""
    return plain(
        {
            "schema_version": SCHEMA_VERSION,
            "kind": "diagnosis",
            "model": model,
            "data": fingerprint,
            "split": split,
            "class_names": class_names,
            "norm": norm,
            "epsilon": epsilon,
            "attacks": [{"attack": name, "settings": one} for name, one in settings.items()],
            "seed": seed,
            "resamples": resamples,
        }
    )


def accuracy(attack: str, table: ClassTable, resamples: int, seed: int) -> dict[str, Any]:
    """Per class counts and intervals, the spread over classes, and the classes that are weak beyond noise."""
    return plain(
        {
            "attack": attack,
            "n": table.n.sum(),
            "correct": table.correct.sum(),
            "per_class": _rows(table._asdict()),
            "spread": spread(table, resamples=max(resamples, 1000), seed=seed),
            "weakness_p": weakness(table),
        }
    )


def superclasses(groups: Superclasses | None) -> dict[str, Any] | None:
    return None if groups is None else plain(groups)


def flow(attack: str, counts: np.ndarray, groups: Superclasses | None) -> dict[str, Any]:
    """Strongest edges, symmetry, super-classes."""
    return plain(
        {
            "attack": attack,
            "symmetry": flows.symmetry(counts),
            "edges": flows.strongest_edges(counts),
            "grouped": None if groups is None else flows.grouped(counts, groups.groups),
        }
    )


def agreement(found: Agreement) -> dict[str, Any]:
    return plain(found)


def gain(found: Gain) -> dict[str, Any]:
    return plain(found)


def confidence(attack: str, found: Confidence) -> dict[str, Any]:
    """Without the (K, K) distribution, which lies in arrays.npz."""
    per_class = {name: values for name, values in found._asdict().items() if name != "distribution"}
    means = {f"mean_{name}": _mean(values) for name, values in per_class.items()}
    return plain({"attack": attack, **means, "per_class": _rows(per_class)})


def temperature(found: Temperatures | None, num_steps: int) -> dict[str, Any] | None:
    if found is None:
        return None
    return plain({"num_steps": num_steps, **found._asdict(), "mean": [_mean(row) for row in found.accuracy]})


def weight_norm(found: NormRelation | None, why_not: str) -> dict[str, Any]:
    return {"why_not": why_not} if found is None else plain({"why_not": None, **found._asdict()})


def epochs(found: Epochs | None, why_not: str) -> dict[str, Any]:
    return {"why_not": why_not} if found is None else plain({"why_not": None, **found._asdict()})


def _rows(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*(columns[name].tolist() for name in names), strict=True)]


def _mean(values: np.ndarray) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else float("nan")
