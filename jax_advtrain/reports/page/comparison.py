"""The pages of comparisons: methods beside each other in one table, their curves, the way to each run's own page."""

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
    norm = NORM_NAMES.get(chosen["norm"], chosen["norm"])
    first = _best(compared, chosen, f"at {norm} {chosen['epsilon']:g}, the middle of the radii, under the worst case")
    second = _best(compared, clean, "clean")
    if areas and areas[0]["best"] is not None:
        second = f"{second[:-1]}; the largest area under accuracy(radius) is that of {areas[0]['best']}."
    return first, second


def _best(compared: Mapping[str, Any], row: Mapping[str, Any], what: str) -> str:
    """Which method is best in a row, as a sentence, and which others are within noise of it."""
    best, names = row["best"], compared["methods"]
    if best is None:
        return f"{what[0].upper()}{what[1:]} nothing is known."
    alike = [name for name in names if name != best and tables.is_within_noise(compared, row, name)]
    noise = "" if len(names) == 1 else "; no other method is within noise of it"
    noise = f"; within noise of it: {', '.join(alike)}" if alike else noise
    told = f"{what} {best} is best, {row['values'][best]['mean']:.1%} right{noise}."
    return told[0].upper() + told[1:]


def _curves(compared: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    clean = next(row for row in compared["rows"] if (row["what"], row["attack"]) == (ACCURACY, CLEAN))
    worst = [row for row in compared["rows"] if (row["what"], row["attack"]) == (ACCURACY, WORST_OF)]
    found = []
    for norm in dict.fromkeys(str(row["norm"]) for row in worst):
        here = sorted((row for row in worst if row["norm"] == norm), key=lambda row: row["epsilon"])
        series = []
        for number, name in enumerate(names):
            places = [(0.0, clean["values"][name]), *((row["epsilon"], row["values"][name]) for row in here)]
            values = [(at, value) for at, value in places if value is not None]
            points = [(at, value["mean"]) for at, value in values]
            series.append(Series(name, points, **charts.look(number), band=_band([value for _, value in values])))
        chart = charts.lines(
            series, x=radius_label(norm), y="accuracy, worst case", percent=True, domain=(0, 1), height=300
        )
        found.append({"norm": norm, "name": NORM_NAMES.get(norm, norm), "legend": series, "chart": chart})
    return found


def _band(values: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """The deviation over seeds around the means; nothing where there is one seed."""
    if not any(value["deviation"] for value in values):
        return []
    by = [(value["mean"], value["deviation"] or 0.0) for value in values]
    return [(max(0.0, mean - one), min(1.0, mean + one)) for mean, one in by]
