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
