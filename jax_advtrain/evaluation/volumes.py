"""How good a segmentation is, case by case in three dimensions: Dice and the 95% Hausdorff distance, on numpy arrays.

Training looks at slices; what is reported belongs to patients. `by_case` puts the slices of a case together again.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int


def by_case(
    predictions: Int[np.ndarray, "samples *space"],
    labels: Int[np.ndarray, "samples *space"],
    ids: Int[np.ndarray, "samples"],
    groups: Int[np.ndarray, "samples"],
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(group, prediction, truth) of each case, by rising group; its samples along the first axis, in the order of ids.

    Raises:
      ValueError: arrays of different lengths or shapes.
    """
    if predictions.shape != labels.shape or not len(predictions) == len(ids) == len(groups):
        raise ValueError(
            f"predictions {predictions.shape}, labels {labels.shape}, {len(ids)} ids and {len(groups)} groups: they "
            "must be those of the same samples"
        )
    for group in np.unique(groups):
        here = np.flatnonzero(groups == group)
        here = here[np.argsort(ids[here])]
        yield int(group), predictions[here], labels[here]


def dice(
    prediction: Int[np.ndarray, "*space"], truth: Int[np.ndarray, "*space"], num_classes: int
) -> Float[np.ndarray, "foreground"]:
    """2 |P and T| / (|P| + |T|) of each foreground class 1..num_classes-1; NaN where a class is in neither."""
    found = np.full(num_classes - 1, np.nan)
    for k in range(1, num_classes):
        predicted, true = prediction == k, truth == k
        both = predicted.sum() + true.sum()
        if both:
            found[k - 1] = 2 * np.sum(predicted & true) / both
    return found


def overlaps(
    predictions: Int[np.ndarray, "samples *space"], labels: Int[np.ndarray, "samples *space"], num_classes: int
) -> Int[np.ndarray, "samples foreground 2"]:
    """|P and T| and |P| + |T| of each sample and foreground class: all that Dice needs, and they add up over
    samples."""
    found = np.empty((len(labels), num_classes - 1, 2), np.int64)
    places = tuple(range(1, labels.ndim))
    for k in range(1, num_classes):
        predicted, true = predictions == k, labels == k
        found[:, k - 1, 0] = np.sum(predicted & true, axis=places)
        found[:, k - 1, 1] = np.sum(predicted, axis=places) + np.sum(true, axis=places)
    return found


def dice_by_case(
    overlap: Int[np.ndarray, "samples foreground 2"], groups: Int[np.ndarray, "samples"]
) -> tuple[Int[np.ndarray, "cases"], Float[np.ndarray, "cases foreground"]]:
    """The groups, rising, and the Dice of each in three dimensions from the overlaps of its samples; NaN where a class
    is in neither prediction nor truth."""
    cases, owners = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(cases), *overlap.shape[1:]))
    np.add.at(sums, owners, overlap)
    common, both = sums[..., 0], sums[..., 1]
    return cases, np.divide(2 * common, both, out=np.full(both.shape, np.nan), where=both > 0)


def class_means(by_case: Float[np.ndarray, "cases foreground"]) -> Float[np.ndarray, "foreground"]:
    """Means over the cases that have a value; NaN where none has."""
    known = np.isfinite(by_case)
    total = np.where(known, by_case, 0).sum(axis=0)
    return np.divide(total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0))


def hausdorff95(
    prediction: Int[np.ndarray, "*space"],
    truth: Int[np.ndarray, "*space"],
    num_classes: int,
    spacing: Sequence[float] | None = None,
) -> Float[np.ndarray, "foreground"]:
    """The 95% Hausdorff distance of each foreground class.

    The 95th percentile of the distances from each surface voxel of the one to the nearest surface voxel of the other;
    the larger of both directions. A surface voxel is one with a neighbour (along an axis) outside the class, or at the
    rim of the array. Distances are scipy's exact Euclidean transform.

    Args:
      spacing: length of a voxel along each axis, e.g. in mm; None: 1.

    Returns:
      (num_classes - 1,) in the units of `spacing`; NaN where the class lacks in the prediction or in the truth: there
      is no distance to what is not there.
    """
    found = np.full(num_classes - 1, np.nan)
    for k in range(1, num_classes):
        surfaces = [_surface(mask == k) for mask in (prediction, truth)]
        if all(surface.any() for surface in surfaces):
            ways = (surfaces, surfaces[::-1])
            found[k - 1] = max(np.percentile(_distances(one, other, spacing), 95) for one, other in ways)
    return found


def _surface(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return mask & ~ndimage.binary_erosion(mask)


def _distances(one: np.ndarray, other: np.ndarray, spacing: Sequence[float] | None) -> np.ndarray:
    """From each voxel of `one` to the nearest of `other`."""
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(~other, sampling=spacing))[one]
