"""Several runs on the same samples: seeds of one method together, methods against each other; noise is called so."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.evaluation.classwise.consistency import agreement
from jax_advtrain.evaluation.classwise.facts import SCHEMA_VERSION, plain
from jax_advtrain.evaluation.classwise.observations import Observed
from jax_advtrain.evaluation.classwise.per_class import LEVEL, SIGNIFICANT, class_table
from jax_advtrain.evaluation.classwise.resampling import resampled_accuracies
from jax_advtrain.evaluation.classwise.significance import adjusted, between_seeds, paired_difference
from jax_advtrain.evaluation.records import WORST_OF


class Run(NamedTuple):
    """One trained model's predictions; `method` is what its seeds share, `name` is its own."""

    name: str
    method: str
    seen: Observed


class OverSeeds(NamedTuple):
    """One number a seed: mean, standard deviation (divided by seeds - 1; NaN for one seed), all of them."""

    mean: float
    deviation: float
    seeds: np.ndarray


class Judged(NamedTuple):
    """A difference between two methods, first - second.

    Attributes:
      value: the mean over the seeds of the one less that of the other.
      low, high: 95% interval by bootstrap over the samples, these trained models given.
      p_value: over samples (McNemar, or random signs where there are several seeds); per class adjusted for their
        number.
      seeds_p: over seeds (Welch); NaN where a method has one seed: then nothing is known of the noise of training.
      real: both p values that there are lie below 0.05.
    """

    value: float
    low: float
    high: float
    p_value: float
    seeds_p: float
    real: bool


class SeedsOnly(NamedTuple):
    """As `Judged`, of a number that no single sample has (worst class, discrepancy): real where the interval leaves out
    0, and the seeds agree."""

    value: float
    low: float
    high: float
    seeds_p: float
    real: bool


def refuse_others(first: Observed, other: Observed, names: tuple[str, str]) -> None:
    """Raises ValueError where two runs are over different classes or different samples."""
    if first.class_names != other.class_names:
        sides = (first.class_names, other.class_names)
        only = [sorted(set(a) - set(b)) for a, b in (sides, sides[::-1])]
        told = "; ".join(
            f"only {name} has {', '.join(classes[:5])}" for name, classes in zip(names, only, strict=True) if classes
        )
        raise ValueError(
            f"{names[0]} has {first.num_classes} classes and {names[1]} {other.num_classes}"
            f"{f' ({told})' if told else ', in another order'}; compare runs over the same classes"
        )
    if not (np.array_equal(first.ids, other.ids) and np.array_equal(first.labels, other.labels)):
        common = len(np.intersect1d(first.ids, other.ids))
        raise ValueError(
            f"{names[0]} was tested on {len(first.ids)} samples and {names[1]} on {len(other.ids)}, {common} of them "
            "the same; compare runs on the same samples (data.test_ids, data.num_test, analysis.num_samples)"
        )


def compare(
    runs: Sequence[Run], *, norm: str, epsilon: float, split: str = "test", resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The content of a comparison's classwise.json.

    Raises:
      ValueError: fewer than two runs; runs over different classes or samples.
    """
    if len(runs) < 2:
        raise ValueError("a comparison needs two runs or more")
    first = runs[0].seen
    for run in runs[1:]:
        refuse_others(first, run.seen, (runs[0].name, run.name))
    labels, classes = first.labels, first.num_classes
    robust = np.stack([run.seen.worst() for run in runs])
    clean = np.stack([run.seen.clean_right for run in runs])
    drawn = resampled_accuracies(labels, robust, classes, resamples=resamples, seed=seed)
    tables = np.stack([class_table(labels, one, classes).accuracy for one in robust])
    methods = list(dict.fromkeys(run.method for run in runs))
    rows = {method: [i for i, run in enumerate(runs) if run.method == method] for method in methods}
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": "comparison",
        "attack": WORST_OF,
        "norm": norm,
        "epsilon": float(epsilon),
        "split": split,
        "class_names": first.class_names,
        "n": np.bincount(labels, minlength=classes),
        "resamples": resamples,
        "groups": [
            _group(method, [runs[i].name for i in rows[method]], clean[rows[method]], robust[rows[method]],
                   tables[rows[method]], first.class_names)
            for method in methods
        ],
        "consistency": agreement([run.name for run in runs], tables, drawn),
        "pairs": [
            _pair((a, b), rows, labels, clean, robust, tables, drawn, resamples, seed)
            for a, b in combinations(methods, 2)
        ],
    }  # fmt: skip
    found = plain(content)
    return {**found, "verdict": _verdict(found)}


def _over_seeds(values: np.ndarray) -> OverSeeds:
    return OverSeeds(
        float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else np.nan, np.asarray(values)
    )


def _group(method: str, names, clean, robust, tables, class_names) -> dict[str, Any]:
    there = np.isfinite(tables[0])
    return {
        "name": method,
        "runs": names,
        "clean": _over_seeds(clean.mean(axis=1)),
        "robust": _over_seeds(robust.mean(axis=1)),
        "worst_class": _over_seeds(tables[:, there].min(axis=1)),
        "discrepancy": _over_seeds(np.ptp(tables[:, there], axis=1)),
        "weakest": [class_names[np.flatnonzero(there)[table[there].argmin()]] for table in tables],
        "per_class": [_over_seeds(tables[:, k]) for k in range(tables.shape[1])],
    }


def _pair(pair, rows, labels, clean, robust, tables, drawn, resamples, seed) -> dict[str, Any]:
    first, second = (rows[method] for method in pair)

    def judged(right: np.ndarray, numbers: np.ndarray, here: Any = slice(None)) -> Judged:
        """`right` (R, N); `numbers` (R,), what the seeds are compared by."""
        found = paired_difference(_shares(right[first][:, here]), _shares(right[second][:, here]),
                                  resamples=resamples, seed=seed)  # fmt: skip
        seeds_p = between_seeds(numbers[first], numbers[second])
        return Judged(*found, seeds_p, _real(found.p_value, seeds_p))

    per_class = [judged(robust, tables[:, k], labels == k) for k in range(tables.shape[1])]
    p_values = adjusted(np.array([one.p_value for one in per_class]))
    per_class = [
        one._replace(p_value=float(p), real=_real(float(p), one.seeds_p))
        for one, p in zip(per_class, p_values, strict=True)
    ]
    there = np.isfinite(tables[0])

    def seeds_only(of) -> SeedsOnly:
        numbers, draws = of(tables[:, there]), of(drawn[:, :, there])
        difference = draws[:, first].mean(axis=1) - draws[:, second].mean(axis=1)
        low, high = np.quantile(difference, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        seeds_p = between_seeds(numbers[first], numbers[second])
        value = float(numbers[first].mean() - numbers[second].mean())
        return SeedsOnly(
            value, float(low), float(high), seeds_p, bool((low > 0 or high < 0) and not seeds_p >= SIGNIFICANT)
        )

    return {
        "first": pair[0],
        "second": pair[1],
        "clean": judged(clean, clean.mean(axis=1)),
        "robust": judged(robust, robust.mean(axis=1)),
        "per_class": per_class,
        "worst_class": seeds_only(lambda accuracy: accuracy.min(axis=-1)),
        "discrepancy": seeds_only(lambda accuracy: np.ptp(accuracy, axis=-1)),
    }


def _shares(right: np.ndarray) -> np.ndarray:
    """Of one seed right or wrong, of several the share that is right."""
    return right[0] if len(right) == 1 else right.mean(axis=0)


def _real(p_value: float, seeds_p: float) -> bool:
    return bool(p_value < SIGNIFICANT and not seeds_p >= SIGNIFICANT)


def _verdict(facts: Mapping[str, Any]) -> list[str]:
    names, lines = facts["class_names"], []
    for one in facts["groups"]:
        seeds = len(one["runs"])
        weakest = sorted(dict.fromkeys(one["weakest"]), key=one["weakest"].count, reverse=True)
        lines.append(
            f"{one['name']} ({seeds} {'run' if seeds == 1 else 'seeds'}): clean {_share(one['clean'])}, robust "
            f"{_share(one['robust'])}, weakest class {_share(one['worst_class'])} ({', '.join(weakest)}), discrepancy "
            f"{_share(one['discrepancy'])}"
        )
    for one in facts["pairs"]:
        told = [
            f"{what} {_points(one[field])}"
            for what, field in (
                *(("clean", "clean"), ("robust", "robust"), ("weakest class", "worst_class")),
                ("discrepancy", "discrepancy"),
            )
        ]
        lines.append(f"{one['first']} against {one['second']}: {'; '.join(told)}")
        real = [k for k, part in enumerate(one["per_class"]) if part["real"]]
        few = ", ".join(f"{names[k]} {100 * one['per_class'][k]['value']:+.1f}" for k in real[:10])
        more = f" and {len(real) - 10} more" if len(real) > 10 else ""
        lines.append(
            f"{one['first']} against {one['second']}, class by class beyond noise: {few + more if real else 'none'}"
        )
    lines += _ranking(facts)
    if any(len(one["runs"]) == 1 for one in facts["groups"]) and facts["pairs"]:
        lines.append(
            "a method with one run: how much training itself varies is not known, only the noise of the samples"
        )
    return lines


def _share(number: Mapping[str, Any]) -> str:
    spread = "" if number["deviation"] is None else f" ± {100 * number['deviation']:.1f}"
    return f"{100 * number['mean']:.1f}{spread}%"


def _points(one: Mapping[str, Any]) -> str:
    return (
        f"{100 * one['value']:+.1f} points (95%: {100 * one['low']:+.1f} to {100 * one['high']:+.1f}), "
        f"{'beyond noise' if one['real'] else 'within noise'}"
    )


def _ranking(facts: Mapping[str, Any]) -> list[str]:
    found = facts["consistency"]
    pairs = [
        (found["spearman"][i][j], i, j)
        for i, j in combinations(range(len(found["names"])), 2)
        if found["spearman"][i][j] is not None
    ]
    if not pairs:
        return ["ranking of classes across runs: undefined, all classes of a run are alike"]
    value, i, j = min(pairs)
    return [
        f"ranking of classes across runs: smallest Spearman {value:.2f} (95%: {found['spearman_low'][i][j]:.2f} to "
        f"{found['spearman_high'][i][j]:.2f}; {found['names'][i]} and {found['names'][j]})"
    ]
