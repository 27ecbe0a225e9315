"""What one attack did to one split, counted: records, their per-sample worst case, their curve.

Numpy only: a record holds plain numbers, an outcome holds one entry a sample.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

CLEAN = "clean"
WORST_OF = "worst-of"


class ClassCount(NamedTuple):
    """How many samples of a class there were, and how many stayed right."""

    n: int
    correct: int


@dataclass(frozen=True)
class Record:
    """One attack at one radius on one split, counted over every sample.

    `epsilon` is in pixel units of [0,1]; `norm` is "linf", "l2", "l1" or None (clean). `passes` are
    forward+backward pairs per sample, a lone forward counting 0.5. `per_class` goes by class index and is
    empty where labels are dense; then `segmentation` holds what `segmented.summary` says of the cases.
    """

    attack: str
    norm: str | None
    epsilon: float
    split: str
    n: int
    correct: int
    per_class: tuple[ClassCount, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    passes: float = 0.0
    seconds: float = 0.0
    segmentation: Mapping[str, Any] | None = None

    @property
    def accuracy(self) -> float:
        """Share of samples that stayed right, in [0, 1]."""
        return self.correct / self.n


class Outcome(NamedTuple):
    """A record with what it was counted from, one entry a sample.

    `right` is bool (N,); `prediction` int (N,), or (N, *space) where labels are dense; `distance` float (N,), the norm
    of the perturbation in the record's norm; `logit_margin` float (N,) or None, max_{j != y} z_j - z_y at the attacked
    image (dense: 1 - Dice); `confidence` float (N,) or None, the softmax probability of `prediction`.
    """

    record: Record
    right: np.ndarray
    prediction: np.ndarray
    distance: np.ndarray
    logit_margin: np.ndarray | None = None
    confidence: np.ndarray | None = None


class WorstCase(NamedTuple):
    """The per-sample worst case at one (norm, epsilon).

    `winner` int (N,) indexes the attack names it was combined under, -1 = survived them all; `prediction` int
    (N,) is the winner's (the clean one where survived); `distance` float (N,) the winner's (0 where clean is
    wrong already, inf where survived). `confidence` float (N,) is that of the prediction (where survived: the least
    that any of them left), or None where one of them does not tell it. Of `worst_segmentation` all are those of the
    winner, which is always one of the names; `score` float (N,) is its 1 - Dice.
    """

    record: Record
    right: np.ndarray
    prediction: np.ndarray
    winner: np.ndarray
    distance: np.ndarray
    confidence: np.ndarray | None = None
    score: np.ndarray | None = None


def make_record(
    attack: str,
    right: np.ndarray,
    labels: np.ndarray | None,
    num_classes: int,
    *,
    norm: str | None = None,
    epsilon: float = 0.0,
    split: str = "test",
    settings: Mapping[str, Any] | None = None,
    passes: float = 0.0,
    seconds: float = 0.0,
) -> Record:
    """Counts `right` (bool (N,), N >= 1) over all samples and per class.

    Args:
      labels: int (N,) in [0, num_classes), or None where labels are dense (no per-class counts then).
      num_classes: number of label values (2 for a network with one logit).

    Raises:
      ValueError: no samples, shapes that differ, labels outside the classes, a negative or
      non-finite epsilon.
    """
    right = np.asarray(right)
    if right.ndim != 1 or right.dtype != np.bool_ or right.size == 0:
        raise ValueError(f"record {attack!r}: right must be a bool array (N,), N >= 1; got {right.dtype} {right.shape}")
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"record {attack!r}: epsilon must be finite and >= 0, got {epsilon}")
    per_class: tuple[ClassCount, ...] = ()
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != right.shape:
            raise ValueError(f"record {attack!r}: labels {labels.shape} and right {right.shape} must match")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"record {attack!r}: labels must lie in [0, {num_classes}), got {labels.min()} to {labels.max()}"
            )
        totals = np.bincount(labels, minlength=num_classes)
        corrects = np.bincount(labels[right], minlength=num_classes)
        per_class = tuple(ClassCount(int(n), int(c)) for n, c in zip(totals, corrects, strict=True))
    return Record(
        attack=attack,
        norm=norm,
        epsilon=float(epsilon),
        split=split,
        n=int(right.size),
        correct=int(right.sum()),
        per_class=per_class,
        settings=dict(settings or {}),
        passes=float(passes),
        seconds=float(seconds),
    )


def attack_names(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    """Names that `winner` indexes: "clean" first, then the attacks as they first occur."""
    return tuple(dict.fromkeys([CLEAN, *(outcome.record.attack for outcome in outcomes)]))


def worst_of(
    clean: Outcome, attacks: Sequence[Outcome], labels: np.ndarray | None, num_classes: int
) -> list[WorstCase]:
    """Per-sample worst case over clean and all attacks of each (norm, epsilon), sorted by norm and epsilon.

    A sample counts as right only if clean and every attack of that norm and that epsilon leave it right. It
    is won by clean if clean is wrong already, else by the attack that made it wrong with the largest logit
    margin (where all of them give one), ties to the earlier. `winner` indexes `attack_names(attacks)`; passes
    and seconds are sums.

    Raises:
      ValueError: an attack on other samples (count or split) than clean.
    """
    names = attack_names(attacks)
    return [_worst_case(clean, members, names, labels, num_classes) for members in _by_radius(clean, attacks)]


def worst_segmentation(clean: Outcome, attacks: Sequence[Outcome]) -> list[WorstCase]:
    """The same where right and wrong have degrees: per sample the image with the lowest Dice wins, of clean and all
    attacks of each (norm, epsilon); one that is wrong beats any that is right, ties go to the earlier.

    Raises:
      ValueError: as `worst_of`.
    """
    names = attack_names(attacks)
    return [_worst_dice(clean, members, names) for members in _by_radius(clean, attacks)]


def _by_radius(clean: Outcome, attacks: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    """The attacks of each (norm, epsilon), once it is sure that they ran on the samples of clean."""
    for norm, epsilon in radii(outcome.record for outcome in attacks):
        members = [o for o in attacks if (o.record.norm, o.record.epsilon) == (norm, epsilon)]
        for member in members:
            if (member.record.n, member.record.split) != (clean.record.n, clean.record.split):
                raise ValueError(
                    f"worst-of at {norm} {epsilon}: attack {member.record.attack!r} ran on "
                    f"{member.record.n} samples of {member.record.split!r}, clean on {clean.record.n} of "
                    f"{clean.record.split!r}"
                )
        yield members


def _worst_dice(clean: Outcome, members: Sequence[Outcome], names: Sequence[str]) -> WorstCase:
    everyone = [clean, *members]
    every_right = np.stack([one.right for one in everyone])
    right = np.asarray(every_right.all(axis=0))
    score = np.stack([np.asarray(one.logit_margin, np.float64) for one in everyone])
    # A broken model's score may be NaN; it is wrong.
    rank = np.where(every_right, np.nan_to_num(score, nan=-1.0), 10.0 + np.nan_to_num(score, nan=10.0))
    strongest = np.argmax(rank, axis=0)
    rows = np.arange(len(right))
    confidence = None
    if all(one.confidence is not None for one in everyone):
        confidence = np.stack([np.asarray(one.confidence) for one in everyone])[strongest, rows]
    return WorstCase(
        _worst_record(clean, members, right, None, 0),
        right,
        np.stack([one.prediction for one in everyone])[strongest, rows],
        np.array([names.index(one.record.attack) for one in everyone], np.int16)[strongest],
        np.stack([one.distance for one in everyone])[strongest, rows],
        confidence,
        score[strongest, rows],
    )


def _worst_record(clean: Outcome, members: Sequence[Outcome], right: np.ndarray, labels, num_classes: int) -> Record:
    first = members[0].record
    return make_record(
        WORST_OF,
        right,
        labels,
        num_classes,
        norm=first.norm,
        epsilon=first.epsilon,
        split=first.split,
        settings={"members": [CLEAN, *(member.record.attack for member in members)]},
        passes=clean.record.passes + sum(member.record.passes for member in members),
        seconds=clean.record.seconds + sum(member.record.seconds for member in members),
    )


def _worst_case(clean, members, names, labels, num_classes) -> WorstCase:
    wrong = ~np.stack([member.right for member in members])  # (A, N)
    if all(member.logit_margin is not None for member in members):
        strength = np.stack([member.logit_margin for member in members]).astype(np.float64)
        # A wrong sample keeps its place whatever its margin: only right ones may stand at -inf below.
        strength = np.nan_to_num(strength, nan=np.finfo(np.float64).min)
    else:
        strength = np.zeros(wrong.shape)
    strongest = np.argmax(np.where(wrong, strength, -np.inf), axis=0)  # argmax keeps the earlier of a tie
    fooled = wrong.any(axis=0) & clean.right
    right = clean.right & ~fooled

    def of_strongest(arrays):
        return np.take_along_axis(np.stack(arrays), strongest[None], axis=0)[0]

    indices = np.array([names.index(member.record.attack) for member in members])
    winner = np.where(fooled, indices[strongest], np.where(clean.right, -1, names.index(CLEAN)))
    distance = np.where(fooled, of_strongest([m.distance for m in members]), np.where(clean.right, np.inf, 0.0))
    prediction = np.where(fooled, of_strongest([m.prediction for m in members]), clean.prediction)
    told = [m.confidence for m in (*members, clean) if m.confidence is not None]
    confidence = None
    if len(told) == len(members) + 1:
        confidence = np.where(fooled, of_strongest(told[:-1]), np.where(clean.right, np.min(told, axis=0), told[-1]))
    record = _worst_record(clean, members, right, labels, num_classes)
    return WorstCase(record, right, prediction.astype(np.int32), winner.astype(np.int16), distance, confidence)


def radii(records: Iterable[Record]) -> list[tuple[str, float]]:
    """The (norm, epsilon) pairs that were attacked, each once, L-inf before L2, by rising epsilon."""
    pairs = {(record.norm, record.epsilon) for record in records if record.norm is not None}
    return sorted(pairs, key=lambda pair: (pair[0] != "linf", pair[0], pair[1]))


def curve_area(epsilons: Sequence[float], accuracy: Sequence[float]) -> float:
    """Area under accuracy(radius) by trapezoids, over the largest radius: in [0, 1], 1 = never wrong.

    Raises:
      ValueError: fewer than two radii, radii that do not rise strictly from 0, accuracies outside [0, 1], or
      lengths that differ.
    """
    radius, height = np.asarray(epsilons, np.float64), np.asarray(accuracy, np.float64)
    if radius.shape != height.shape or radius.ndim != 1:
        raise ValueError(f"curve: {radius.shape} radii and {height.shape} accuracies, one of each is needed")
    if radius.size < 2 or radius[0] != 0 or not (np.diff(radius) > 0).all():
        raise ValueError(f"curve: radii must rise strictly from 0 and be two or more, got {radius.tolist()}")
    if not ((height >= 0) & (height <= 1)).all():
        raise ValueError(f"curve: accuracies must lie in [0, 1], got {height.tolist()}")
    shares = radius / radius[-1]  # scaled first: radii near the smallest float must not underflow in the product
    # Trapezoids of rounded widths may exceed 1 by an ulp.
    return float(np.clip(np.trapezoid(height, shares), 0.0, 1.0))


def headline(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Curve summaries of the worst-of records, one a (split, norm), starting with clean at epsilon 0; of segmentation
    with the mean Dice over cases too (where every record has one)."""
    curves = []
    for split in dict.fromkeys(record.split for record in records):
        clean = [r for r in records if r.split == split and r.attack == CLEAN]
        worst = [r for r in records if r.split == split and r.attack == WORST_OF]
        for norm in dict.fromkeys(pair[0] for pair in radii(worst)):
            points = {0.0: clean[0].accuracy} if clean else {}
            points |= {r.epsilon: r.accuracy for r in worst if r.norm == norm}
            dice = {r.epsilon: mean_dice(r) for r in (*clean[:1], *worst) if r.norm in (None, norm)}
            epsilons = sorted(points)
            if epsilons[0] != 0 or len(epsilons) < 2:
                continue
            accuracy = [points[epsilon] for epsilon in epsilons]
            area = curve_area(epsilons, accuracy)
            curves.append(dict(split=split, norm=norm, epsilons=epsilons, accuracy=accuracy, area=area))
            heights = [height for epsilon in epsilons if (height := dice[epsilon]) is not None]
            if len(heights) == len(epsilons):
                curves[-1] |= dict(dice=heights, dice_area=curve_area(epsilons, heights))
    return curves


def mean_dice(record: Record) -> float | None:
    """The mean foreground Dice over cases; None where there is none."""
    return None if record.segmentation is None else record.segmentation["dice"]["mean"]["value"]
