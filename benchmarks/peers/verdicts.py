"""What is kept of one attack on one network: a verdict and a distance a sample. Numpy only, for both environments.

Files: DATA/verdicts/CASE/ATTACK@WHO.npz.
"""

from pathlib import Path

import numpy as np

LEVEL = 1e-4  # of the radius (1e-6 at least): rounding, not a longer step


def distances(images: np.ndarray, attacked: np.ndarray, norm: str) -> np.ndarray:
    change = (attacked.astype(np.float64) - images.astype(np.float64)).reshape(len(images), -1)
    if norm == "linf":
        return np.abs(change).max(axis=1)
    if norm == "l0":  # entries: pixels times channels
        return (np.abs(change) > 1e-7).sum(axis=1).astype(float)
    return np.linalg.norm(change, ord={"l2": 2, "l1": 1}[norm], axis=1)


def judge(
    images: np.ndarray, attacked: np.ndarray, right: np.ndarray, clean_right: np.ndarray, norm: str
) -> dict[str, np.ndarray]:
    """Per sample: `wrong` (the attacked image fools), `distance` (0 where the clean image is wrong), `broken` (NaN, or
    outside [0, 1]: counts as no success)."""
    broken = ~np.isfinite(attacked).reshape(len(images), -1).all(axis=1)
    attacked = np.where(np.isfinite(attacked), attacked, images)
    broken |= (attacked.reshape(len(images), -1) < -1e-5).any(axis=1) | (
        attacked.reshape(len(images), -1) > 1 + 1e-5
    ).any(axis=1)
    wrong = (~right & ~broken) | ~clean_right
    found = np.where(clean_right, distances(images, attacked, norm), 0.0)
    return {"wrong": wrong, "distance": found, "broken": broken, "clean_right": clean_right}


def path(data: str, case: str, attack: str, who: str) -> Path:
    return Path(data) / "verdicts" / case / f"{attack}@{who.replace(' ', '_')}.npz"


def is_done(place: Path, count: int) -> bool:
    """Whether a verdict on so many samples is kept."""
    return place.exists() and len(np.load(place)["wrong"]) >= count


def save(place: Path, found: dict[str, np.ndarray], seconds: float) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez(place, seconds=seconds, **found)


def fooled(found, epsilon: float) -> np.ndarray:
    """Which samples are fooled within the radius."""
    within = found["distance"] <= epsilon + max(LEVEL * epsilon, 1e-6)
    return found["wrong"] & within


def line(found, epsilon: float, minimum: bool) -> str:
    robust = 100 * (1 - fooled(found, epsilon).mean())
    text = f"robust {robust:5.1f}%"
    if minimum:
        text += f", median distance {median(found):.4f}"
    outside = 0 if minimum else (found["wrong"] & ~fooled(found, epsilon)).sum()
    if outside:
        text += f", {outside} outside the ball"
    if found["broken"].any():
        text += f", {found['broken'].sum()} NaN or outside [0, 1]"
    return text


def median(found) -> float:
    """Of the samples that are right at first; a failure counts as infinitely far."""
    away = np.where(found["wrong"], found["distance"], np.inf)[found["clean_right"]]
    return float(np.median(away)) if len(away) else 0.0
