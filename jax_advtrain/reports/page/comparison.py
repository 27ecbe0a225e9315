"""The page of a comparison: methods beside each other in one table, their curves, and the way to each run's own page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_advtrain.evaluation.comparison import ACCURACY, AREA
from jax_advtrain.evaluation.records import CLEAN, WORST_OF
from jax_advtrain.reports import comparison as tables
from jax_advtrain.reports.page import charts, render
from jax_advtrain.reports.page.charts import Series
from jax_advtrain.reports.style import NORM_NAMES, radius_label


def write_comparison(
    compared: Mapping[str, Any],
    path: Path,
    *,
    folder: str,
    runs: Sequence[Mapping[str, Any]],
    commands: Sequence[tuple[str, str]],
    settings: Any,
    warnings: Sequence[str] = (),
) -> Path:
    """Draws the page of a grid.

    Args:
      compared: content of comparison.json.
      runs: {"method", "seed", "link": relative path of its page, or None}.
      commands, settings: as in `run.Holdings` and `run.settings`.
    """
    names = list(compared["methods"])
    rows = [{"label": tables.label(row), "what": row["what"], "worst": row["attack"] in (WORST_OF, CLEAN), 
             "cells": [_cell(compared, row, name) for name in names]} for row in compared["rows"]]  # fmt: skip
    others = [name for name in names if name != compared["reference"]]
    curves, found = _curves(compared, names), {}
    for curve in curves:
        found[f"curve-{curve['norm']}"] = curve["chart"]
        curve["chart"] = {"name": f"curve-{curve['norm']}", "height": curve["chart"]["usermeta"]["height"]}
    return render.write_page(
        "comparison.html",
        path,
        {
            "title": f"{len(names)} method{'s' * (len(names) > 1)} on {compared['data']['name']}",
            "subtitle": f"{compared['samples'][0]:,} {compared['data']['split']} samples",
            "folder": folder,
            "sentences": sentences(compared),
            "numbers": [],
            "warnings": list(warnings),
            "names": names,
            "rows": rows,
            "note": tables.NOTE,
            "reference": compared["reference"],
            "others": others,
            "differences": tables.difference_rows(compared, others),
            "curves": curves,
            "runs": runs,
            "commands": commands,
            "missing": [],
            "settings": settings,
            "charts": found,
        },
    )


def _cell(compared: Mapping[str, Any], row: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = row["values"][name]
    return {
        "text": tables.number(row, value),
        "value": None if value is None else value["mean"],
        "best": tables.is_best(row, name),
        "alike": tables.is_within_noise(compared, row, name),
    }


def sentences(compared: Mapping[str, Any]) -> tuple[str, str]:
    """Which method is best under attack and clean, and what of that is noise."""
    names = list(compared["methods"])
    areas = [row for row in compared["rows"] if row["what"] == AREA]
    worst = [row for row in compared["rows"] if (row["what"], row["attack"]) == (ACCURACY, WORST_OF)]
    clean = next(row for row in compared["rows"] if (row["what"], row["attack"]) == (ACCURACY, CLEAN))
    if len(names) == 1 or not worst:
        return f"One method, {names[0]}, is compared with none." if len(names) == 1 else "No attack was run.", _best(
            compared, clean, "clean"
        )
    middle = sorted((row for row in worst if row["norm"] == worst[0]["norm"]), key=lambda row: row["epsilon"])
    chosen = middle[(len(middle) - 1) // 2]
    where = f"at {NORM_NAMES.get(chosen['norm'], chosen['norm'])} {chosen['epsilon']:g}, the middle of the radii,"
    first = _best(compared, chosen, f"{where} under the worst case")
    area = (
        ""
        if not areas or areas[0]["best"] is None
        else f"; the largest area under accuracy(radius) is that of {areas[0]['best']}"
    )
    return first, _best(compared, clean, "clean").removesuffix(".") + f"{area}."


def _best(compared: Mapping[str, Any], row: Mapping[str, Any], what: str) -> str:
    if row["best"] is None:
        return f"{what[0].upper()}{what[1:]}, nothing is known."
    alike = [
        name for name in compared["methods"] if name != row["best"] and tables.is_within_noise(compared, row, name)
    ]
    value = row["values"][row["best"]]
    noise = (
        f"; within noise of it: {', '.join(alike)}"
        if alike
        else "; no other method is within noise of it"
        if len(compared["methods"]) > 1
        else ""
    )
    told = f"{what} {row['best']} is best, {value['mean']:.1%} right{noise}."
    return told[0].upper() + told[1:]


def _curves(compared: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    clean = next(row for row in compared["rows"] if (row["what"], row["attack"]) == (ACCURACY, CLEAN))
    worst = [row for row in compared["rows"] if (row["what"], row["attack"]) == (ACCURACY, WORST_OF)]
    found = []
    for norm in dict.fromkeys(str(row["norm"]) for row in worst):
        here = sorted((row for row in worst if row["norm"] == norm), key=lambda row: row["epsilon"])
        series = []
        for number, name in enumerate(names):
            values = [
                (at, value)
                for at, value in [
                    (0.0, clean["values"][name]),
                    *((row["epsilon"], row["values"][name]) for row in here),
                ]
                if value
            ]
            spread = [value["deviation"] or 0.0 for _, value in values]
            bands = {} if not any(spread) else {
                "low": [max(0.0, value["mean"] - by) for (_, value), by in zip(values, spread, strict=True)],
                "high": [min(1.0, value["mean"] + by) for (_, value), by in zip(values, spread, strict=True)]}  # fmt: skip
            series.append(Series(name, [(at, value["mean"]) for at, value in values], **charts.look(number), **bands))
        found.append({"norm": norm, "name": NORM_NAMES.get(norm, norm), "legend": series,
                      "chart": charts.lines(series, x=radius_label(norm), y="accuracy, worst case", percent=True, domain=(0, 1), height=300)})  # fmt: skip
    return found


def write_comparison_of_runs(
    facts: Mapping[str, Any],
    path: Path,
    *,
    folder: str,
    runs: Sequence[Mapping[str, Any]],
    commands: Sequence[tuple[str, str]],
    warnings: Sequence[str] = (),
) -> Path:
    """Draws the page of --mode=diagnose --workdirs: seeds and methods, class by class.

    Args:
      facts: classwise.json of the comparison. runs, commands: as in `write_comparison`.
    """
    groups = facts["groups"]
    rows = []
    for k, name in enumerate(facts["class_names"]):
        values = [group["per_class"][k] for group in groups]
        known = [one["mean"] for one in values if one["mean"] is not None]
        rows.append(
            {"name": name, "n": facts["n"][k], "values": values, "spread": max(known) - min(known) if known else None}
        )
    where = f"{NORM_NAMES.get(facts['norm'], facts['norm'])} {facts['epsilon']:.4g}"
    best = max(groups, key=lambda group: group["robust"]["mean"])
    weakest = max(groups, key=lambda group: group["worst_class"]["mean"])
    beyond = [pair for pair in facts["pairs"] if pair["robust"]["real"]]
    first = f"{best['name']} is the most robust at {where}, {best['robust']['mean']:.1%} right under the worst case; {len(beyond)} of {len(facts['pairs'])} pairs of methods differ beyond noise."
    second = f"The weakest class is least weak with {weakest['name']}, {weakest['worst_class']['mean']:.1%}."
    if len(groups) == 1:
        first = f"One method, {best['name']}, {best['robust']['mean']:.1%} right under the worst case at {where}, over {len(runs)} runs."
    return render.write_page(
        "comparison_of_runs.html",
        path,
        {
            "title": f"{len(runs)} runs, class by class",
            "subtitle": f"{sum(facts['n']):,} {facts['split']} samples, {where}",
            "folder": folder,
            "sentences": (first, second),
            "numbers": [],
            "warnings": list(warnings),
            "verdict": facts["verdict"],
            "groups": groups,
            "pairs": facts["pairs"],
            "rows": sorted(
                rows,
                key=lambda row: min((one["mean"] for one in row["values"] if one["mean"] is not None), default=2.0),
            )[:2000],
            "runs": runs,
            "commands": commands,
            "missing": [],
            "settings": [],
            "charts": {},
        },
    )
