"""Methods beside each other, from what their evaluations left behind: means over seeds, and paired tests.

Numpy only. What is compared was evaluated alike, or is refused.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.evaluation.paired import compare_pairs, holm, within_noise
from jax_advtrain.evaluation.records import CLEAN, WORST_OF, Record, radii
from jax_advtrain.evaluation.results import records_of, sample_key
from jax_advtrain.evaluation.two_classes import two_class_metrics

ACCURACY, WORST_CLASS, AREA, SECONDS = "accuracy", "worst class", "area", "training seconds"
TWO_CLASSES = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ece": "ECE",
}


class Quantity(NamedTuple):
    """What a row of the table tells: ("accuracy", "pgd-10-ce", "linf", 0.1), ("area", "worst-of", "l2", 0.0)."""

    what: str
    attack: str
    norm: str | None = None
    epsilon: float = 0.0

    @property
    def is_better_higher(self) -> bool:
        return self.what not in (SECONDS, TWO_CLASSES["ece"])


class Evaluated(NamedTuple):
    """An evaluation as it lies on the disk: results.json and per_sample.npz."""

    results: Mapping[str, Any]
    per_sample: Mapping[str, np.ndarray]


class RunFacts(NamedTuple):
    """A trained run.

    Attributes:
      seed: of the run.
      seconds: of training.
      evaluations: the main one first; others, of fewer samples perhaps, after it.
    """

    seed: int
    seconds: float
    evaluations: tuple[Evaluated, ...]


def compare_methods(methods: Mapping[str, Sequence[RunFacts]]) -> dict[str, Any]:
    """All of a comparison, in plain values.

    Returns:
      {"methods": {name: {"seeds"}}, "data": fingerprint, "samples": [of each evaluation], "rows": [{"what", "attack",
      "norm", "epsilon", "best": name or None, "values": {name: {"mean", "deviation", "each"}}}], "tests": [{the same
      four, "first", "second", `Paired`'s fields, "p_adjusted", "within_noise"}]}. The deviation is that of a sample
      (n - 1), None for one seed; p values are adjusted over the pairs of a row.

    Raises:
      ValueError: no run, or runs whose data or evaluation differ.
    """
    check_alike(methods)
    table = {name: [_quantities(run) for run in of_method] for name, of_method in methods.items()}
    listed = dict.fromkeys(key for of_method in table.values() for one in of_method for key in one)
    rows = []
    for key in sorted(listed, key=lambda one: _ORDER.index(one.what)):
        values = {name: _summary([one.get(key) for one in of_method]) for name, of_method in table.items()}
        known = {name: one["mean"] for name, one in values.items() if one is not None}
        best = (max if key.is_better_higher else min)(known, key=lambda name: known[name]) if known else None
        rows.append({**key._asdict(), "best": best, "values": values})
    first = next(iter(methods.values()))[0]
    return {
        "methods": {name: {"seeds": [run.seed for run in of_method]} for name, of_method in methods.items()},
        "data": dict(first.evaluations[0].results["data"]),
        "samples": [len(one.per_sample["id"]) for one in first.evaluations],
        "rows": rows,
        "tests": _tests(methods),
    }


_ORDER = (ACCURACY, WORST_CLASS, *TWO_CLASSES.values(), AREA, SECONDS)


def check_alike(methods: Mapping[str, Sequence[RunFacts]]) -> None:
    """Raises one-line ValueError unless all runs were evaluated on the same samples under the same attacks."""
    runs = [(f"{name}, seed {run.seed}", run) for name, of_method in methods.items() for run in of_method]
    if not runs or not all(methods.values()):
        raise ValueError("a comparison needs a run of every method")
    (leader, first), *others = runs
    for name, run in others:
        if len(run.evaluations) != len(first.evaluations):
            raise ValueError(f"{name} has {len(run.evaluations)} evaluations, {leader} {len(first.evaluations)}")
        for one, other in zip(first.evaluations, run.evaluations, strict=True):
            if one.results["data"] != other.results["data"]:
                raise ValueError(f"{name} was evaluated on other data than {leader}; a comparison needs the same")
            if not np.array_equal(one.per_sample["id"], other.per_sample["id"]):
                raise ValueError(f"{name} was evaluated on other samples than {leader}; a comparison needs the same")
            differing = set(map(repr, _attacks(one))) ^ set(map(repr, _attacks(other)))
            if differing:
                raise ValueError(
                    f"{name} was evaluated otherwise than {leader}: only one of them has {min(differing)}; a "
                    "comparison needs the same attacks at the same radii"
                )


def _attacks(evaluated: Evaluated) -> list[tuple]:
    return [
        (record.attack, record.norm, record.epsilon, record.n, sorted(record.settings.items()))
        for record in records_of(evaluated.results)
    ]


def _summary(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return {"mean": float(np.mean(known)), "deviation": deviation, "each": known}


def _quantities(run: RunFacts) -> dict[Quantity, float | None]:
    """All numbers of a run, in the order of the table's rows."""
    main, *others = run.evaluations
    records = records_of(main.results)
    found: dict[Quantity, float | None] = {}
    for record in _by_radius(records):
        found[Quantity(ACCURACY, record.attack, record.norm, record.epsilon)] = record.accuracy
        if record.attack == WORST_OF:
            for other in others:
                found |= _of_fewer(other, record.norm, record.epsilon)
    for other in others:  # at radii that the main one does not have
        for norm, epsilon in radii(records_of(other.results)):
            found |= {key: value for key, value in _of_fewer(other, norm, epsilon).items() if key not in found}
    for record in _by_radius(records):
        if record.attack in (CLEAN, WORST_OF):
            place = (record.attack, record.norm, record.epsilon)
            shares = [count.correct / count.n for count in record.per_class if count.n]
            found[Quantity(WORST_CLASS, *place)] = min(shares) if shares else None
            if len(record.per_class) == 2:
                told = two_class_metrics(main.per_sample["label"], *_predicted(main.per_sample, *place[1:]))
                found |= {Quantity(TWO_CLASSES[name], *place): value for name, value in told._asdict().items()}
    for curve in main.results["headline"]:
        found[Quantity(AREA, WORST_OF, curve["norm"])] = curve["area"]
    found[Quantity(SECONDS, "")] = run.seconds
    return found


def _by_radius(records: Sequence[Record]) -> list[Record]:
    """Clean, then radius by radius all attacks, their worst case last."""
    places = radii(records)
    return [record for record in records if record.attack == CLEAN] + [
        record for place in places for record in records if (record.norm, record.epsilon) == place
    ]


def _of_fewer(evaluated: Evaluated, norm: str | None, epsilon: float) -> dict[Quantity, float | None]:
    return {
        Quantity(ACCURACY, fewer_label(record), norm, epsilon): record.accuracy
        for record in records_of(evaluated.results)
        if (record.norm, record.epsilon) == (norm, epsilon) and record.attack != WORST_OF
    }


def fewer_label(record: Record) -> str:
    """How an attack of an evaluation beside the main one is called: with the number of its samples."""
    return f"{record.attack} (first {record.n})"


def _predicted(per_sample: Mapping[str, np.ndarray], norm: str | None, epsilon: float):
    """Prediction and confidence, clean (norm None) or of the worst case; confidence None in older files."""
    if norm is None:
        return per_sample["clean_prediction"], per_sample.get("clean_confidence")
    return per_sample[sample_key("prediction", norm, epsilon)], per_sample.get(sample_key("confidence", norm, epsilon))


def _rights(run: RunFacts) -> dict[Quantity, np.ndarray]:
    """bool (N,) of everything that per_sample.npz tells sample by sample: clean, and the worst case of each radius."""
    found = {}
    for number, one in enumerate(run.evaluations):
        records = records_of(one.results)
        places = [(None, 0.0), *radii(records)] if not number else radii(records)
        for norm, epsilon in places:
            name = CLEAN if norm is None else WORST_OF
            if number:
                at = [r for r in records if (r.norm, r.epsilon) == (norm, epsilon) and r.attack != WORST_OF]
                if len(at) > 1:
                    continue
                name = fewer_label(at[0])
            prediction, _ = _predicted(one.per_sample, norm, epsilon)
            found[Quantity(ACCURACY, name, norm, epsilon)] = prediction == one.per_sample["label"]
    return found


def _tests(methods: Mapping[str, Sequence[RunFacts]]) -> list[dict[str, Any]]:
    rights = {name: [_rights(run) for run in of_method] for name, of_method in methods.items()}
    tests = []
    for key in next(iter(rights.values()))[0]:
        stacked = {name: np.stack([one[key] for one in of_method]) for name, of_method in rights.items()}
        pairs = list(itertools.combinations(stacked, 2))
        found = [compare_pairs(stacked[first], stacked[second]) for first, second in pairs]
        adjusted = holm([one.p_value for one in found])
        for (first, second), one, p_adjusted in zip(pairs, found, adjusted, strict=True):
            noise = {"p_adjusted": p_adjusted, "within_noise": within_noise(p_adjusted, one.p_seeds)}
            tests.append({**key._asdict(), "first": first, "second": second, **one._asdict(), **noise})
    return tests
