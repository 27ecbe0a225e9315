"""Are the margins that training believes in the distances to the boundary? Rank correlation, in plain numbers."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Agreement(NamedTuple):
    """Margins beside the distances that a search found.

    Attributes:
      n: samples in all.
      wrong: of them wrong on the clean image; left out below.
      unfound: of the others those to which the search found no adversarial image; left out below.
      compared: what remains.
      at_ceiling: of those compared, margins that reached the ceiling and so can only say "at least".
      spearman: rank correlation of those compared; None where it is not defined (fewer than 3, or all alike).
      spearman_below: the same of those below the ceiling.
      median_ratio: median of distance / margin below the ceiling, margins of 0 left out; None where there is none.
      within_delta: of those below the ceiling, the share whose margin and distance differ by delta at most; None where
        there is none.
    """

    n: int
    wrong: int
    unfound: int
    compared: int
    at_ceiling: int
    spearman: float | None
    spearman_below: float | None
    median_ratio: float | None
    within_delta: float | None


def agreement(
    margins: np.ndarray,
    distances: np.ndarray,
    *,
    clean_right: np.ndarray,
    found: np.ndarray,
    delta: float,
    ceiling: float | None,
) -> Agreement:
    """Compares per-sample margins with distances to the nearest adversarial image.

    Args:
      margins, distances: float (N,), pixel units of [0, 1], in the same norm.
      clean_right, found: bool (N,): right on the clean image; an adversarial image was found.
      delta: step of the margins. ceiling: of the margins, None = there is none.

    References:
      Ma & Liang 2023, section on the equilibrium of margin and boundary.
    """
    used = clean_right & found
    below = used if ceiling is None else used & (margins < ceiling - 1e-6)
    positive = below & (margins > 0)
    apart = np.abs(distances - margins)[below]
    return Agreement(
        n=len(margins),
        wrong=int((~clean_right).sum()),
        unfound=int((clean_right & ~found).sum()),
        compared=int(used.sum()),
        at_ceiling=int((used & ~below).sum()),
        spearman=rank_correlation(margins[used], distances[used]),
        spearman_below=rank_correlation(margins[below], distances[below]),
        median_ratio=float(np.median(distances[positive] / margins[positive])) if positive.any() else None,
        within_delta=float((apart <= delta + 1e-6).mean()) if below.any() else None,
    )


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's; None below 3 samples, or where one side is all alike."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(stats.spearmanr(first, second)[0])  # pyright: ignore[reportArgumentType]
