"""What attacks did to a set of samples: all that the diagnosis is counted from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.evaluation.records import WORST_OF, Outcome, make_record, worst_of
from jax_advtrain.evaluation.results import sample_key


class Observed(NamedTuple):
    """Plain arrays, one entry a sample.

    Attributes:
      ids: int (N,), what tells the samples apart.
      labels: int (N,), in [0, K).
      clean_prediction: int (N,); -1, here and below, where the model gave NaN.
      predictions: {attack: int (N,)}, class on the attacked image; the attacks from weak to strong.
      class_names: K names.
    """

    ids: np.ndarray
    labels: np.ndarray
    clean_prediction: np.ndarray
    predictions: dict[str, np.ndarray]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def clean_right(self) -> np.ndarray:
        return self.clean_prediction == self.labels

    def right(self) -> dict[str, np.ndarray]:
        """{attack: bool (N,)}."""
        return {name: prediction == self.labels for name, prediction in self.predictions.items()}

    def worst(self) -> np.ndarray:
        """bool (N,): right clean and under every attack."""
        return np.logical_and.reduce([self.clean_right, *self.right().values()])


def observed(
    labels: Any,
    clean_prediction: Any,
    predictions: Mapping[str, Any],
    class_names: Sequence[str],
    *,
    ids: Any = None,
) -> Observed:
    """Checks the arrays and puts them together.

    Raises:
      ValueError: one line: no samples, shapes that differ, labels or predictions outside the classes.
    """
    labels = np.asarray(labels)
    ids = np.arange(len(labels)) if ids is None else np.asarray(ids)
    arrays = {"labels": labels, "ids": ids, "clean_prediction": np.asarray(clean_prediction)}
    attacked = {name: np.asarray(values) for name, values in predictions.items()}
    if not len(labels):
        raise ValueError("class-wise analysis: there are no samples")
    for name, values in {**arrays, **attacked}.items():
        if values.shape != labels.shape or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                f"class-wise analysis: {name} is {values.dtype} {values.shape}; give whole numbers {labels.shape}"
            )
        least = 0 if name == "labels" else -1
        if name != "ids" and (values.min() < least or values.max() >= len(class_names)):
            raise ValueError(
                f"class-wise analysis: {name} goes from {values.min()} to {values.max()}, the {len(class_names)} "
                f"classes from 0 to {len(class_names) - 1}"
            )
    return Observed(ids, labels, arrays["clean_prediction"], attacked, tuple(class_names))


def from_per_sample(
    per_sample: Mapping[str, np.ndarray], class_names: Sequence[str], norm: str, epsilon: float
) -> Observed:
    """The worst case of a finished evaluation (per_sample.npz) at one radius.

    Raises:
      ValueError: it holds no such radius (those that it holds are named).
    """
    key = sample_key("prediction", norm, epsilon)
    if key not in per_sample:
        there = ", ".join(name.partition("/")[2] for name in per_sample if name.startswith("prediction/"))
        raise ValueError(f"the evaluation holds no {norm}/{epsilon:g}; it holds {there or 'no attack'}")
    return observed(
        per_sample["label"],
        per_sample["clean_prediction"],
        {WORST_OF: per_sample[key]},
        class_names,
        ids=per_sample["id"],
    )


def worst_case(seen: Observed, scores: Mapping[str, np.ndarray], norm: str, epsilon: float) -> np.ndarray:
    """Predictions int (N,) of the per-sample worst case over all attacks, as `records.worst_of` tells it.

    Args:
      scores: {attack: float (N,)}, the logit margin at the attacked image.
    """

    def outcome(name: str, prediction: np.ndarray, score: np.ndarray | None) -> Outcome:
        right = prediction == seen.labels
        place = dict(norm=None, epsilon=0.0) if score is None else dict(norm=norm, epsilon=epsilon)
        record = make_record(name, right, seen.labels, seen.num_classes, **place)  # pyright: ignore[reportArgumentType]
        return Outcome(record, right, prediction, np.zeros(len(right)), score)

    clean = outcome("clean", seen.clean_prediction, None)
    attacked = [outcome(name, prediction, scores[name]) for name, prediction in seen.predictions.items()]
    return worst_of(clean, attacked, seen.labels, seen.num_classes)[0].prediction
