"""The section of the classes: a table that sorts, and where attacked images go. From a diagnosis, else from an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_advtrain.evaluation.classwise import flow
from jax_advtrain.evaluation.classwise.per_class import SIGNIFICANT, table_of_counts
from jax_advtrain.evaluation.records import CLEAN, WORST_OF
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
    where = verdict.radius(facts["norm"], facts["epsilon"])
    lead = (f"{len(arrays['label']):,} {facts['split']} samples at {where}, {facts['model'].get('checkpoint', '')} checkpoint, under the worst of "
            f"{len(facts['attacks'])} attack{'s' * (len(facts['attacks']) > 1)}")  # fmt: skip
    part = _section(facts["class_names"], clean, worst, counts, weak)
    return {**part, "title": name, "lead": lead, "verdict": facts["verdict"], "tested": True}


def of_evaluation(one: Evaluation, found: Found) -> dict[str, Any] | None:
    """From results.json and per_sample.npz, at the radius of the verdict; None where classes were not counted."""
    if found.worst is None or not found.worst.per_class:
        return None
    clean, worst = (
        table_of_counts(
            np.array([count.n for count in record.per_class]), np.array([count.correct for count in record.per_class])
        )._asdict()
        for record in (found.clean, found.worst)
    )
    assert found.worst.norm is not None
    predicted = one.per_sample[sample_key("prediction", found.worst.norm, found.worst.epsilon)]
    counts = flow.confusion(one.per_sample["label"], predicted, len(found.worst.per_class))
    lead = (f"{found.worst.n:,} {found.worst.split} samples at {verdict.radius(found.worst.norm, found.worst.epsilon)}, evaluation {one.name}, "
            f"under the worst of {found.num_attacks} attack{'s' * (found.num_attacks > 1)}")  # fmt: skip
    part = _section(one.class_names, clean, worst, counts, [False] * len(found.worst.per_class))
    return {**part, "title": f"eval/{one.name}", "lead": lead, "verdict": [], "tested": False}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    return {what: np.array([row[what] for row in rows], float) for what in ("n", "accuracy", "low", "high")}


def _section(names: Sequence[str], clean, worst, counts: np.ndarray, weak: Sequence[bool]) -> dict[str, Any]:
    shares, off = flow.row_shares(counts), np.where(np.eye(len(counts), dtype=bool), 0, counts)
    rows = []
    for k, name in enumerate(names):
        target = int(off[k].argmax())
        rows.append({
            "name": name, "n": int(clean["n"][k]), "clean": _cell(clean, k), "worst": _cell(worst, k), "weak": weak[k],
            "drop": _finite(clean["accuracy"][k] - worst["accuracy"][k]),
            "target": names[target] if off[k, target] else "-", "target_share": float(shares[k, target]) if off[k, target] else 0.0})  # fmt: skip
    rows.sort(key=lambda row: 2.0 if row["worst"]["accuracy"] is None else row["worst"]["accuracy"])
    edges = flow.strongest_edges(counts, _EDGES)
    return {
        "rows": rows[:MOST_ROWS],
        "left_out": max(0, len(rows) - MOST_ROWS),
        **_map(names, shares, counts),
        "edges": [
            {
                "source": names[e.source],
                "target": names[e.target],
                "count": e.count,
                "share": e.share,
                "low": e.low,
                "high": e.high,
                "reverse": _finite(e.reverse),
            }
            for e in edges
        ],  # fmt: skip
    }


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
    # A name alone need not tell classes apart, and all cells of one name would be one cell.
    told = [names[k] if list(names).count(names[k]) == 1 else f"{names[k]} ({k})" for k in shown]
    rows = [
        {"true": told[i], "predicted": told[j], "share": float(f"{shares[a, b]:.4g}"), "count": int(counts[a, b]), "own": int(a == b)}
        for i, a in enumerate(shown) for j, b in enumerate(shown) if counts[a, b] or a == b
    ]  # fmt: skip
    written = len(shown) <= _MOST_WRITTEN
    return {"map": charts.heat_map(rows, told, written=written), "map_of": len(shown), "num_classes": len(names)}
