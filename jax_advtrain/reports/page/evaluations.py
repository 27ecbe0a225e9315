"""The section of the attacks: accuracy against radius, and every number with its interval."""

from collections.abc import Sequence
from typing import Any

from jax_advtrain.evaluation.records import CLEAN, WORST_OF, Record
from jax_advtrain.evaluation.results import records_of
from jax_advtrain.reports.page import charts, verdict
from jax_advtrain.reports.page.charts import Series
from jax_advtrain.reports.page.verdict import Evaluation
from jax_advtrain.reports.style import NORM_NAMES, radius_label

MOST_EVALUATIONS = 24


def section(found: Sequence[Evaluation], main: Evaluation) -> list[dict[str, Any]]:
    """One part an evaluation, that which speaks for the run first."""
    others = [one for one in found if one.name != main.name]
    return [_part(one) for one in [main, *others][:MOST_EVALUATIONS]]


def _part(one: Evaluation) -> dict[str, Any]:
    records = records_of(one.results)
    clean = next(record for record in records if record.attack == CLEAN)
    model = one.results["model"]
    norms = list(dict.fromkeys(record.norm for record in records if record.norm))
    return {
        "name": one.name,
        "checkpoint": model.get("checkpoint", ""),
        "step": model.get("step"),
        "split": clean.split,
        "n": clean.n,
        "warnings": verdict.warnings_of(one),
        "curves": [_curve(records, clean, norm) for norm in norms],
        "dice_curves": [_dice_curve(records, clean, norm) for norm in norms if clean.segmentation is not None],
        "areas": [(NORM_NAMES.get(curve["norm"], curve["norm"]), curve["area"]) for curve in one.results["headline"]],
        "rows": [_row(record, one.class_names) for record in _ordered(records)],
    }


def _curve(records: Sequence[Record], clean: Record, norm: str) -> dict[str, Any]:
    here = [record for record in records if record.norm == norm]
    names = sorted(dict.fromkeys(record.attack for record in here), key=lambda name: name != WORST_OF)
    series = []
    for number, name in enumerate(names):
        points = sorted(
            [(0.0, clean.accuracy), *((record.epsilon, record.accuracy) for record in here if record.attack == name)]
        )
        if name == WORST_OF:
            series.append(Series("worst case", points, "red", width=3))
        else:
            series.append(Series(name, points, **charts.look(number - 1), width=1.3))
    return {
        "norm": norm,
        "name": NORM_NAMES.get(norm, norm),
        "chart": charts.lines(series, x=radius_label(norm), y="accuracy", percent=True, domain=(0, 1)),
        "legend": series,
    }


def _dice_curve(records: Sequence[Record], clean: Record, norm: str) -> dict[str, Any]:
    """Of segmentation: the Dice of the worst case over the radius, its mean and that of each class."""
    worst = sorted((r for r in records if r.norm == norm and r.attack == WORST_OF), key=lambda record: record.epsilon)
    at: list[tuple[float, Any]] = [(one.epsilon if one.norm else 0.0, verdict.dice_of(one)) for one in (clean, *worst)]
    names = [one["class"] for one in at[0][1]["per_class"]]
    lines = {"mean": [(epsilon, dice["mean"]) for epsilon, dice in at]}
    lines |= {name: [(epsilon, dice["per_class"][k]) for epsilon, dice in at] for k, name in enumerate(names)}
    series = []
    for number, (name, points) in enumerate(lines.items()):
        known = [(epsilon, one["value"]) for epsilon, one in points if one["value"] is not None]
        looks = {"colour": "red", "width": 3} if number == 0 else {**charts.look(number - 1), "width": 1.3}
        series.append(Series(name, known, **looks))
    return {
        "norm": norm,
        "name": NORM_NAMES.get(norm, norm),
        "chart": charts.lines(series, x=radius_label(norm), y="Dice", domain=(0, 1)),
        "legend": series,
    }


def _ordered(records: Sequence[Record]) -> list[Record]:
    """Clean; then radius by radius the worst case, and the attacks from strong to weak."""
    places = list(dict.fromkeys((record.norm, record.epsilon) for record in records if record.norm))
    ordered = [record for record in records if record.attack == CLEAN]
    for place in places:
        here = [record for record in records if (record.norm, record.epsilon) == place]
        ordered += sorted(here, key=lambda record: (record.attack != WORST_OF, record.accuracy))
    return ordered


def _row(record: Record, names: Sequence[str]) -> dict[str, Any]:
    class_, dice = verdict.weakest(record, names), verdict.dice_of(record)
    return {
        "norm": NORM_NAMES.get(record.norm or "", record.norm or "-"),
        "epsilon": record.epsilon,
        "attack": "worst case" if record.attack == WORST_OF else record.attack,
        "is_worst": record.attack in (WORST_OF, CLEAN),
        "accuracy": record.accuracy,
        "interval": verdict.interval(record.correct, record.n),
        "n": record.n,
        "dice": None if dice is None else dice["mean"]["value"],
        "weakest": "-" if class_ is None else f"{class_[1] / class_[2]:.1%} ({class_[0]})",
        "weakest_value": None if class_ is None else class_[1] / class_[2],
        "passes": record.passes,
        "seconds": record.seconds,
    }
