"""The verdict in two sentences, the numbers beside it, and what calls them in question."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.evaluation.classwise.per_class import wilson
from jax_advtrain.evaluation.records import CLEAN, WORST_OF, Record
from jax_advtrain.evaluation.results import records_of
from jax_advtrain.reports.style import NORM_NAMES


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
    """The records at the radius of that norm which is nearest; where the norm was not attacked, in the middle of another's."""
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
        f"{what}: zero gradient at {zero} samples, NaN or infinite at {bad_ones}"
        for what, (zero, bad_ones) in bad.items()
    ]
    return [*one.results["warnings"], *counted]


def stronger_elsewhere(main: Evaluation, found: Found, others: Sequence[Evaluation]) -> list[str]:
    """Lines on other evaluations of the same weights that found less at the same radius: the verdict would flatter."""
    lines = []
    for other in others:
        same_weights = other.results["model"].get("step") == main.results["model"].get("step")
        if other.name == main.name or found.worst is None or not same_weights:
            continue
        for record in records_of(other.results):
            same = (record.attack, record.norm, record.epsilon, record.split) == (
                WORST_OF, found.worst.norm, found.worst.epsilon, found.worst.split)  # fmt: skip
            if same and record.accuracy < found.worst.accuracy:
                lines.append(
                    f"the evaluation {other.name!r} finds less at {radius(record.norm, record.epsilon)}: "
                    f"{record.accuracy:.1%} of {record.n} samples ({interval(record.correct, record.n)}), this one "
                    f"{found.worst.accuracy:.1%} of {found.worst.n}"
                )
    return lines


def sentences(method: str, main: Evaluation, found: Found, num_warnings: int) -> tuple[str, str]:
    """The verdict: how much is right clean and attacked; which class is weakest and whether the numbers can be believed."""
    clean, worst = found.clean, found.worst
    first = f"{method} gets {clean.accuracy:.1%} of {clean.n:,} {clean.split} samples right when clean"
    if worst is None:
        return f"{first}.", "It was not attacked."
    attacks = f"the worst of {found.num_attacks} attacks" if found.num_attacks > 1 else "one attack"
    first += f", and {worst.accuracy:.1%} (95% interval {interval(worst.correct, worst.n)}) under {attacks} at {radius(worst.norm, worst.epsilon)}."
    class_ = weakest(worst, main.class_names)
    told = "Classes were not counted" if class_ is None else (
        f"The weakest class there is {class_[0]}, {class_[1] / class_[2]:.1%} right ({class_[1]} of {class_[2]}; {interval(*class_[1:])})"
    )  # fmt: skip
    if num_warnings:
        doubt = f"{num_warnings} warning{'s' * (num_warnings > 1)} below call{'s' * (num_warnings == 1)} these numbers in question"
    else:
        checked = bool(main.settings.get("check_samples"))
        doubt = "the records show no sign of masked gradients" + (
            ", and check_model found nothing" if checked else " (check_model was not run)"
        )
    return first, f"{told}; {doubt}."


def numbers(main: Evaluation, found: Found) -> list[Number]:
    """Clean, robust, weakest class."""
    clean, worst = found.clean, found.worst
    told = [
        Number(
            "clean",
            f"{clean.accuracy:.1%}",
            interval(clean.correct, clean.n),
            f"{clean.correct:,} of {clean.n:,} {clean.split} samples",
        )
    ]
    if worst is None:
        return told
    where = radius(worst.norm, worst.epsilon)
    told.append(
        Number(
            "robust",
            f"{worst.accuracy:.1%}",
            interval(worst.correct, worst.n),
            f"worst of {found.num_attacks}, {where}",
        )
    )
    class_ = weakest(worst, main.class_names)
    if class_ is not None:
        name, correct, n = class_
        told.append(
            Number("weakest class", f"{correct / n:.1%}", interval(correct, n), f"{name}: {correct} of {n}, {where}")
        )
    return told
