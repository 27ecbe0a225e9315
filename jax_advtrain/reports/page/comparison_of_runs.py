"""The page of --mode=diagnose --workdirs: seeds and methods beside each other, class by class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_advtrain.reports.page import render
from jax_advtrain.reports.page.classes import MOST_ROWS
from jax_advtrain.reports.page.verdict import radius


def write_comparison_of_runs(
    facts: Mapping[str, Any],
    path: Path,
    *,
    folder: str,
    runs: Sequence[Mapping[str, Any]],
    commands: Sequence[tuple[str, str]],
) -> Path:
    """Draws the page.

    Args:
      facts: classwise.json of the comparison. runs, commands: as in `comparison.write_comparison`.
    """
    where = radius(facts["norm"], facts["epsilon"])
    return render.write_page(
        "comparison_of_runs.html",
        path,
        {
            "title": f"{len(runs)} runs, class by class",
            "subtitle": f"{sum(facts['n']):,} {facts['split']} samples, {where}",
            "folder": folder,
            "sentences": sentences(facts, len(runs), where),
            "numbers": [],
            "warnings": [],
            "verdict": facts["verdict"],
            "groups": facts["groups"],
            "pairs": facts["pairs"],
            "rows": _rows(facts),
            "runs": runs,
            "commands": commands,
            "missing": [],
            "settings": [],
            "charts": {},
        },
    )


def sentences(facts: Mapping[str, Any], num_runs: int, where: str) -> tuple[str, str]:
    """Which method is most robust, and whose weakest class is least weak."""
    groups, pairs = facts["groups"], facts["pairs"]
    best = max(groups, key=lambda group: group["robust"]["mean"])
    weakest = max(groups, key=lambda group: group["worst_class"]["mean"])
    right = f"{best['robust']['mean']:.1%} right under the worst case at {where}"
    alike = [
        pair["second"] if pair["first"] == weakest["name"] else pair["first"]
        for pair in pairs
        if weakest["name"] in (pair["first"], pair["second"]) and not pair["worst_class"]["real"]
    ]
    noise = f"; within noise of it: {', '.join(alike)}" if alike else ""
    second = f"The weakest class is least weak with {weakest['name']}, {weakest['worst_class']['mean']:.1%}{noise}."
    if len(groups) == 1:
        return f"{best['name']} is {right}, over {num_runs} runs.", second
    beyond = sum(pair["robust"]["real"] for pair in pairs)
    return f"{best['name']} is the most robust, {right}; {beyond} of {len(pairs)} pairs differ beyond noise.", second


def _rows(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Class by class what each method reaches, the class first that is weakest with any."""
    rows = []
    for k, name in enumerate(facts["class_names"]):
        values = [group["per_class"][k] for group in facts["groups"]]
        known = [one["mean"] for one in values if one["mean"] is not None]
        apart = max(known) - min(known) if known else None
        row = {"name": name, "n": facts["n"][k], "values": values, "spread": apart}
        rows.append((min(known, default=2.0), row))
    return [row for _, row in sorted(rows, key=lambda one: one[0])][:MOST_ROWS]
