"""How good a segmentation is under an attack, case by case in three dimensions, and what is kept of it.

The slices of a case are put together again; samples of a set without cases are cases of their own. Intervals are those
of
the bootstrap over cases, with the same draws for every attack: what is the same in all is not noise between them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jax_advtrain.data import Dataset
from jax_advtrain.evaluation import volumes
from jax_advtrain.evaluation.records import CLEAN, Outcome, WorstCase, attack_names

RESAMPLES = 1000
_INTERVAL = (2.5, 97.5)


class CaseScores(NamedTuple):
    """One row a case, one column a foreground class; NaN where there is no such number.

    Attributes:
      groups: (cases,) number of the case in `Dataset.group_names`; without groups the sample's id.
      dice: see `volumes.dice`.
      hausdorff95: see `volumes.hausdorff95`, in millimetres where the set tells its voxels' sizes, else in pixels.
    """

    groups: Int[np.ndarray, "cases"]
    dice: Float[np.ndarray, "cases foreground"]
    hausdorff95: Float[np.ndarray, "cases foreground"]


def score_cases(prediction: Int[np.ndarray, "samples *space"], data: Dataset) -> CaseScores:
    """Dice and Hausdorff distance of every case."""
    owners = cases_of(data)
    groups, dice, distances = [], [], []
    for group, found, truth in volumes.by_case(prediction, data.labels, data.ids, owners):
        if len(found) == 1:  # a whole volume, or an image: no axis of slices
            found, truth = found[0], truth[0]
        spacing = None if data.spacing is None else data.spacing[group][-truth.ndim :]
        groups.append(group)
        dice.append(volumes.dice(found, truth, data.num_classes))
        distances.append(volumes.hausdorff95(found, truth, data.num_classes, spacing))
    return CaseScores(np.array(groups, np.int64), np.array(dice), np.array(distances))


def cases_of(data: Dataset) -> np.ndarray:
    """(N,) which case each sample belongs to."""
    return data.ids if data.groups is None else data.groups


def summary(scores: CaseScores, data: Dataset, *, seed: int = 0) -> dict[str, Any]:
    """Plain values for results.json: means over cases with their intervals, for each foreground class and for the mean
    of the classes of each case. A mean is None where no case has a value."""
    names = data.class_names[1:]
    return {
        "cases": len(scores.groups),
        "dice": _means(scores.dice, names, seed),
        "hausdorff95": {
            **_means(scores.hausdorff95, names, seed),
            "unit": "pixel" if data.spacing is None else "mm",
        },
    }


def _means(values: Float[np.ndarray, "cases foreground"], names: Sequence[str], seed: int) -> dict[str, Any]:
    known = np.isfinite(values)
    in_all = np.divide(
        np.where(known, values, 0).sum(1), known.sum(1), out=np.full(len(values), np.nan), where=known.any(1)
    )
    return {
        "mean": mean_over_cases(in_all, seed=seed),
        "per_class": [{"class": name, **mean_over_cases(values[:, k], seed=seed)} for k, name in enumerate(names)],
    }


def mean_over_cases(values: Float[np.ndarray, "cases"], *, seed: int = 0) -> dict[str, Any]:
    """{"value", "low", "high", "cases"}: the mean over the cases that have a value, and its 95% interval by bootstrap
    over them; None where there is none (an interval: fewer than two)."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {"value": None, "low": None, "high": None, "cases": 0}
    found: dict[str, Any] = {"value": float(known.mean()), "low": None, "high": None, "cases": len(known)}
    if len(known) > 1:
        rng = np.random.default_rng(seed)
        drawn = known[rng.integers(0, len(known), (RESAMPLES, len(known)))].mean(axis=1)
        found["low"], found["high"] = (float(side) for side in np.percentile(drawn, _INTERVAL))
    return found


def per_sample_arrays(
    data: Dataset, clean: Outcome, attacks: Sequence[Outcome], cases: Sequence[WorstCase]
) -> dict[str, np.ndarray]:
    """The arrays of per_sample.npz: of each slice (or whole image) what `results.per_sample_arrays` keeps of an image,
    with "dice" (the mean of the foreground classes, smoothed as in training) in place of predictions and classes.

    "winner" indexes `attack_names`: the attack whose image has the lowest Dice, 0 (clean) where none lowered it.
    """
    arrays: dict[str, np.ndarray] = {
        "id": np.asarray(data.ids, np.int64),
        "case": np.asarray(cases_of(data), np.int64),
        "has_foreground": np.any(data.labels > 0, axis=tuple(range(1, data.labels.ndim))),
        "clean_right": clean.right,
        "clean_dice": _dice(clean.logit_margin),
        "attack_names": np.array(attack_names(attacks)),
    }
    if clean.confidence is not None:
        arrays["clean_confidence"] = clean.confidence.astype(np.float32)
    for case in cases:
        at = f"{case.record.norm}/{case.record.epsilon!r}"
        arrays[f"right/{at}"] = case.right
        arrays[f"dice/{at}"] = _dice(case.score)
        arrays[f"winner/{at}"] = case.winner
        arrays[f"distance/{at}"] = case.distance.astype(np.float32)
        if case.confidence is not None:
            arrays[f"confidence/{at}"] = case.confidence.astype(np.float32)
    return arrays


def _dice(score: np.ndarray | None) -> np.ndarray:
    assert score is not None
    return (1 - score).astype(np.float32)


def per_case_arrays(data: Dataset, scored: Mapping[tuple[str, str | None, float], CaseScores]) -> dict[str, np.ndarray]:
    """The arrays of per_case.npz, one row a case: "case" (names; ids where there are none), "dice/clean" and
    "dice/<attack>/<norm>/<radius>" (cases, foreground), "hausdorff95/..." likewise; "class_names", of the columns.

    Args:
      scored: (attack, norm, epsilon) -> scores; all of the same cases.
    """
    groups = next(iter(scored.values())).groups
    names = [data.group_names[group] if data.groups is not None else str(group) for group in groups]
    arrays: dict[str, np.ndarray] = {"case": np.array(names), "class_names": np.array(data.class_names[1:])}
    for (attack, norm, epsilon), scores in scored.items():
        at = CLEAN if norm is None else f"{attack}/{norm}/{epsilon!r}"
        arrays[f"dice/{at}"] = scores.dice.astype(np.float32)
        arrays[f"hausdorff95/{at}"] = scores.hausdorff95.astype(np.float32)
    return arrays
