"""What is asked of a classifier of two classes, class 1 the positive one: sensitivity, AUROC, calibration."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score


class TwoClasses(NamedTuple):
    """Shares in [0, 1]; None where a class has no sample, or where no confidence is known.

    Attributes:
      sensitivity, specificity: of the samples of class 1, of class 0, the share that is right.
      balanced_accuracy: their mean.
      auroc: that a sample of class 1 is given a higher probability of it than one of class 0.
      ece: expected calibration error: how far confidence and accuracy lie apart.
    """

    sensitivity: float | None
    specificity: float | None
    balanced_accuracy: float | None
    auroc: float | None
    ece: float | None


def two_class_metrics(labels: np.ndarray, prediction: np.ndarray, confidence: np.ndarray | None) -> TwoClasses:
    """Counts predictions of two classes.

    Args:
      labels, prediction: int (N,), 0 or 1; a prediction of -1 (NaN) is wrong, and the AUROC ranks it last.
      confidence: float (N,), the probability of the predicted class, or None.
    """
    right, positive = prediction == labels, labels == 1
    both = bool(positive.any() and (~positive).any())
    sensitivity = float(right[positive].mean()) if positive.any() else None
    specificity = float(right[~positive].mean()) if (~positive).any() else None
    balanced = (sensitivity + specificity) / 2 if sensitivity is not None and specificity is not None else None
    auroc = ece = None
    if confidence is not None:
        of_positive = np.where(prediction == 1, confidence, 1 - confidence)
        of_positive = np.where(prediction < 0, ~positive, of_positive)
        auroc = float(roc_auc_score(positive, of_positive)) if both else None
        ece = calibration_error(right, confidence)
    return TwoClasses(sensitivity, specificity, balanced, auroc, ece)


def calibration_error(right: np.ndarray, confidence: np.ndarray, bins: int = 15) -> float:
    """Mean distance of accuracy and confidence over bins of equal width, each weighing as its samples.

    Args:
      right: bool (N,), N >= 1. confidence: float (N,) in [0, 1].

    References:
      Guo et al., On calibration of modern neural networks, ICML 2017, equation 3.
    """
    place = np.clip(np.ceil(np.asarray(confidence, np.float64) * bins).astype(int) - 1, 0, bins - 1)
    excess = np.bincount(place, right.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(excess).sum() / len(right))
