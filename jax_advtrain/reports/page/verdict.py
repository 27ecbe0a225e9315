"""The verdict in two sentences, the numbers beside it, and what calls them in question."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.evaluation.classwise.per_class import wilson
from jax_advtrain.evaluation.records import CLEAN, WORST_OF, Record
from jax_advtrain.evaluation.results import records_of
from jax_advtrain.reports.style import NORM_NAMES

Diagnoses = Sequence[tuple[str, Mapping[str, Any], Mapping[str, np.ndarray]]]


class Evaluation(NamedTuple):
    """An evaluation as it lies in eval/<name>; `settings` of settings.json, `gallery` of gallery.npz, or None."""

    name: str
    results: Mapping[str, Any]
    per_sample: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    gallery: Mapping[str, np.ndarray] | None = None

    @property
    def class_names(self) -> list[str]:
        """Those of results.json; numbers where it has none (older evaluations)."""
        counts = self.results["records"][0]["per_class"]
        return list(self.results["model"].get("class_names") or map(str, range(len(counts))))


class Number(NamedTuple):
    """A key number: what it is, as text; its 95% interval and what else there is to say of it."""

    name: str
    value: str
    interval: str
    note: str


class Lower(NamedTuple):
    """A finding that is lower than the verdict's: which part of the workdir says so, right, and samples."""

    source: str
    correct: int
    n: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    def __str__(self) -> str:
        told = f"{self.accuracy:.1%} of {self.n:,} samples ({interval(self.correct, self.n)})"
        return f"{self.source} finds less at the same radius: {told}"


class Found(NamedTuple):
    """Clean and worst case at the radius of interest; `worst` None where nothing was attacked."""

    clean: Record
    worst: Record | None
    num_attacks: int


def main_of(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The one that speaks for the run: of the best checkpoint, else the last, else the comparison's, else the first."""
    by_name = {one.name: one for one in evaluations}
    preferred = [by_name[name] for name in ("best", "last", "compare") if name in by_name]
    return next(iter([*preferred, *evaluations]), None)


def at_radius(one: Evaluation, norm: str, epsilon: float) -> Found:
    """The records at the nearest radius of that norm; where the norm was not attacked, at the middle one of another."""
    records = records_of(one.results)
    clean = next(record for record in records if record.attack == CLEAN)
    worst = [record for record in records if record.attack == WORST_OF]
    if not worst:
        return Found(clean, None, 0)
    same = [record for record in worst if record.norm == norm]
    if same:
        chosen = min(same, key=lambda record: (abs(record.epsilon - epsilon), record.epsilon))
    else:
        same = sorted((record for record in worst if record.norm == worst[0].norm), key=lambda record: record.epsilon)
        chosen = same[(len(same) - 1) // 2]
    here = [record for record in records if (record.norm, record.epsilon) == (chosen.norm, chosen.epsilon)]
    return Found(clean, chosen, len(here) - 1)


def interval(correct: int, n: int) -> str:
    """The 95% Wilson interval as text: "93.4% to 98.1%"."""
    low, high = wilson(np.array([correct]), np.array([n]))
    return f"{low[0]:.1%} to {high[0]:.1%}"


def radius(norm: str | None, epsilon: float) -> str:
    """L-inf 0.1."""
    return f"{NORM_NAMES.get(norm or '', norm)} {epsilon:.4g}"


def weakest(record: Record, names: Sequence[str]) -> tuple[str, int, int] | None:
    """Name, right and number of the class with the least accuracy (the first of a tie)."""
    there = [(count.correct / count.n, k) for k, count in enumerate(record.per_class) if count.n]
    if not there:
        return None
    _, k = min(there)
    return str(names[k]) if k < len(names) else str(k), record.per_class[k].correct, record.per_class[k].n


def warnings_of(one: Evaluation) -> list[str]:
    """What results.json warns of: `check_model`'s lines, signs of masking, bad gradients."""
    bad = one.results["model"].get("bad_gradients", {})
    counted = [
        f"{what}: zero gradient at {zero} samples, NaN or infinite at {nan}" for what, (zero, nan) in bad.items()
    ]
    return [*one.results["warnings"], *counted]


def all_warnings(main: Evaluation, others: Sequence[Evaluation]) -> list[str]:
    """Those of the evaluation that speaks for the run, then what others of the same weights add, each with its name."""
    lines = warnings_of(main)
    for other in same_weights(main, others):
        lines += [f"{other.name}: {line}" for line in warnings_of(other) if line not in warnings_of(main)]
    return lines


def same_weights(main: Evaluation, others: Sequence[Evaluation]) -> list[Evaluation]:
    """The other evaluations of the same predictor."""
    return [one for one in others if one.name != main.name and is_same_model(main, one.results["model"])]


def is_same_model(main: Evaluation, model: Mapping[str, Any]) -> bool:
    """Whether step and correction are the evaluation's: with a correction, the same weights predict otherwise."""
    return all(model.get(name) == main.results["model"].get(name) for name in ("step", "correction"))


def lower_elsewhere(main: Evaluation, found: Found, others: Sequence[Evaluation], diagnoses: Diagnoses) -> list[Lower]:
    """What else in the workdir found less of the same weights at the same radius, the least first: the verdict would
    flatter without it."""
    worst = found.worst
    if worst is None:
        return []
    lower = []
    for other in same_weights(main, others):
        same = (WORST_OF, worst.norm, worst.epsilon, worst.split)
        for record in records_of(other.results):
            if (record.attack, record.norm, record.epsilon, record.split) == same:
                lower.append(Lower(f"the evaluation {other.name}", record.correct, record.n))
    for name, facts, _ in diagnoses:
        same = (worst.norm, worst.epsilon, worst.split)
        if (facts["norm"], facts["epsilon"], facts["split"]) == same and is_same_model(main, facts["model"]):
            table = next(one for one in facts["accuracy"] if one["attack"] == WORST_OF)
            lower.append(Lower(name, table["correct"], table["n"]))
    return sorted((one for one in lower if one.accuracy < worst.accuracy), key=lambda one: one.accuracy)


def sentences(
    method: str, main: Evaluation, found: Found, lower: Sequence[Lower], *, num_warnings: int, is_checked: bool
) -> tuple[str, str]:
    """The verdict: how much is right, clean and attacked; which class is weakest, and whether to believe it all.

    Args:
      lower: see `lower_elsewhere`. is_checked: whether `check_model` looked at these weights.
    """
    clean, worst = found.clean, found.worst
    dice, attacked_dice = dice_of(clean), dice_of(worst)
    if dice is None:
        first = f"{method} gets {clean.accuracy:.1%} of {clean.n:,} {clean.split} samples right when clean"
    else:
        reached = f"a mean Dice of {_value(dice['mean'])} over {dice['mean']['cases']} {clean.split} cases"
        first = f"{method} reaches {reached} when clean"
    if worst is None:
        return f"{first}.", "It was not attacked."
    attacks = f"the worst of {found.num_attacks} attacks" if found.num_attacks > 1 else "one attack"
    left = f"{worst.accuracy:.1%}" if attacked_dice is None else _value(attacked_dice["mean"])
    first += f", and {left} under {attacks} at {radius(worst.norm, worst.epsilon)}"
    unit = " of slices right" if attacked_dice is not None else ""
    first += f"; {lower[0].source} leaves {lower[0].accuracy:.1%}{unit}." if lower else "."
    class_, least = weakest(worst, main.class_names), weakest_dice(worst)
    told = "Classes were not counted"
    if least is not None:
        told = f"The weakest class there is {least['class']}, Dice {_value(least)}"
    if class_ is not None:
        name, correct, n = class_
        told = f"The weakest class there is {name}, {correct / n:.1%} right ({correct} of {n})"
    return first, f"{told}; {_doubt(num_warnings, is_checked)}."


def _doubt(num_warnings: int, is_checked: bool) -> str:
    if num_warnings == 1:
        return "the warning below calls these numbers in question"
    if num_warnings:
        return f"{num_warnings} warnings below call these numbers in question"
    checked = ", and check_model found nothing" if is_checked else " (check_model was not run)"
    return f"the records show no sign of masked gradients{checked}"


def numbers(main: Evaluation, found: Found) -> list[Number]:
    """Clean, robust, weakest class; of segmentation the Dice of clean, attacked, weakest class."""
    clean, worst = found.clean, found.worst
    dice = dice_of(clean)
    if dice is not None:
        return _dice_numbers(dice, found)
    counted = f"{clean.correct:,} of {clean.n:,} {clean.split} samples"
    told = [Number("clean", f"{clean.accuracy:.1%}", interval(clean.correct, clean.n), counted)]
    if worst is None:
        return told
    where = radius(worst.norm, worst.epsilon)
    attacks = f"worst of {found.num_attacks}, {where}"
    told.append(Number("robust", f"{worst.accuracy:.1%}", interval(worst.correct, worst.n), attacks))
    class_ = weakest(worst, main.class_names)
    if class_ is not None:
        name, correct, n = class_
        counted = f"{name}: {correct} of {n}, {where}"
        told.append(Number("weakest class", f"{correct / n:.1%}", interval(correct, n), counted))
    return told


def _dice_numbers(dice: Mapping[str, Any], found: Found) -> list[Number]:
    clean, worst = found.clean, found.worst
    right = f"{clean.correct:,} of {clean.n:,} slices right"
    told = [Number("Dice, clean", _value(dice["mean"]), _dice_interval(dice["mean"]), right)]
    attacked, least = dice_of(worst), weakest_dice(worst)
    if worst is not None and attacked is not None:
        where = f"worst of {found.num_attacks}, {radius(worst.norm, worst.epsilon)}"
        right = f"{where}; {worst.correct:,} slices right"
        told.append(Number("Dice, attacked", _value(attacked["mean"]), _dice_interval(attacked["mean"]), right))
        if least is not None:
            named = f"{least['class']}, {where}"
            told.append(Number("Dice, weakest class", _value(least), _dice_interval(least), named))
    return told


def dice_of(record: Record | None) -> Mapping[str, Any] | None:
    """Mean and classes of a record's Dice over cases; None of classification."""
    return None if record is None or record.segmentation is None else record.segmentation["dice"]


def weakest_dice(record: Record | None) -> Mapping[str, Any] | None:
    """The class with the least Dice, where any is known."""
    dice = dice_of(record)
    known = [] if dice is None else [one for one in dice["per_class"] if one["value"] is not None]
    return min(known, key=lambda one: one["value"], default=None)


def _value(found: Mapping[str, Any]) -> str:
    return "unknown" if found["value"] is None else f"{found['value']:.3f}"


def _dice_interval(found: Mapping[str, Any]) -> str:
    """By bootstrap over the cases."""
    return "unknown" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"
