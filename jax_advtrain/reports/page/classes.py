"""The section of the classes: a table that sorts, and where attacked images go; of a diagnosis, else an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_advtrain.evaluation.classwise import flow
from jax_advtrain.evaluation.classwise.per_class import SIGNIFICANT, table_of_counts
from jax_advtrain.evaluation.records import CLEAN, WORST_OF, Record
from jax_advtrain.evaluation.results import sample_key
from jax_advtrain.reports.page import charts, verdict
from jax_advtrain.reports.page.verdict import Evaluation, Found

MOST_ROWS = 2000  # classes in the table; the weakest are kept
_MOST_WRITTEN, _MOST_CELLS, _MOST_INVOLVED = 14, 60, 40
_EDGES = 12


def of_diagnosis(name: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """From classwise.json and arrays.npz of a diagnosis."""
    tables = {one["attack"]: one for one in facts["accuracy"]}
    clean, worst = (_columns(tables[what]["per_class"]) for what in (CLEAN, WORST_OF))
    counts = flow.confusion(arrays["label"], arrays[f"prediction/{WORST_OF}"], len(facts["class_names"]))
    weak = [p is not None and p < SIGNIFICANT for p in tables[WORST_OF]["weakness_p"]]
    which = f"{facts['model'].get('checkpoint', '')} checkpoint"
    lead = _lead(len(arrays["label"]), facts["split"], facts["norm"], facts["epsilon"], which, len(facts["attacks"]))
    part = _section(facts["class_names"], clean, worst, counts, weak)
    return {**part, "title": name, "lead": lead, "verdict": facts["verdict"], "tested": True}


def of_evaluation(one: Evaluation, found: Found) -> dict[str, Any] | None:
    """From results.json and per_sample.npz, at the radius of the verdict; None where classes were not counted."""
    worst = found.worst
    if worst is None or worst.norm is None or not worst.per_class:
        return None
    predicted = one.per_sample[sample_key("prediction", worst.norm, worst.epsilon)]
    counts = flow.confusion(one.per_sample["label"], predicted, len(worst.per_class))
    lead = _lead(worst.n, worst.split, worst.norm, worst.epsilon, f"evaluation {one.name}", found.num_attacks)
    part = _section(one.class_names, _table(found.clean), _table(worst), counts, [False] * len(worst.per_class))
    return {**part, "title": f"eval/{one.name}", "lead": lead, "verdict": [], "tested": False}


def _lead(n: int, split: str, norm: str, epsilon: float, which: str, num_attacks: int) -> str:
    attacks = f"the worst of {num_attacks} attacks" if num_attacks > 1 else "one attack"
    return f"{n:,} {split} samples at {verdict.radius(norm, epsilon)}, {which}, under {attacks}"


def _table(record: Record) -> dict[str, np.ndarray]:
    n, correct = (np.array([getattr(count, what) for count in record.per_class]) for what in ("n", "correct"))
    return table_of_counts(n, correct)._asdict()


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {what: np.array([row[what] for row in rows], float) for what in ("n", "accuracy", "low", "high")}


def _section(names: Sequence[str], clean, worst, counts: np.ndarray, weak: Sequence[bool]) -> dict[str, Any]:
    shares, off = flow.row_shares(counts), np.where(np.eye(len(counts), dtype=bool), 0, counts)
    rows = []
    for k, name in enumerate(names):
        target = int(off[k].argmax())
        flows = bool(off[k, target])
        rows.append(
            {
                "name": name,
                "n": int(clean["n"][k]),
                "clean": _cell(clean, k),
                "worst": _cell(worst, k),
                "weak": weak[k],
                "drop": _finite(clean["accuracy"][k] - worst["accuracy"][k]),
                "target": names[target] if flows else "-",
                "target_share": float(shares[k, target]) if flows else 0.0,
            }
        )
    rows.sort(key=lambda row: 2.0 if row["worst"]["accuracy"] is None else row["worst"]["accuracy"])
    edges = [
        {**edge._asdict(), "source": names[edge.source], "target": names[edge.target], "reverse": _finite(edge.reverse)}
        for edge in flow.strongest_edges(counts, _EDGES)
    ]
    left_out = max(0, len(rows) - MOST_ROWS)
    return {"rows": rows[:MOST_ROWS], "left_out": left_out, "edges": edges, **_map(names, shares, counts)}


def _cell(table: Mapping[str, np.ndarray], k: int) -> dict[str, Any]:
    return {what: _finite(table[what][k]) for what in ("accuracy", "low", "high")}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _map(names: Sequence[str], shares: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    """The heat map: of all classes, or where they are too many, of those between which most flows."""
    shown = np.arange(len(names))
    if len(names) > _MOST_CELLS:
        off = np.where(np.eye(len(names), dtype=bool), 0, shares)
        shown = np.sort(np.argsort(-(off.max(axis=0) + off.max(axis=1)), kind="stable")[:_MOST_INVOLVED])
    shares, counts = shares[np.ix_(shown, shown)], counts[np.ix_(shown, shown)]
    # Cells of classes with one name would be one cell.
    differ = len(set(names)) == len(names)
    told = [names[k] if differ else f"{k}: {names[k]}" for k in shown.tolist()]
    rows = [
        {
            "true": told[i],
            "predicted": told[j],
            "share": float(f"{shares[i, j]:.4g}"),
            "count": int(counts[i, j]),
            "own": int(i == j),
        }
        for i, j in np.ndindex(*counts.shape)
        if counts[i, j] or i == j
    ]
    drawn = charts.heat_map(rows, told, written=len(shown) <= _MOST_WRITTEN)
    return {"map": drawn, "map_of": len(shown), "num_classes": len(names)}
