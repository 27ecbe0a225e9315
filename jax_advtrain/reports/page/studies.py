"""The sections of the studies beside training and evaluation: margin survey, equilibrium, homing."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_advtrain.reports.page import charts, verdict
from jax_advtrain.reports.page.charts import Series
from jax_advtrain.reports.style import radius_label


def survey(name: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Which share of the samples has at least a margin (margins.json, margins.npz of --mode=margins)."""
    settings, n = facts["settings"], facts["n"]
    margin, right = arrays["margin"], arrays["clean_right"].astype(bool)
    largest = float(np.max(arrays["radii"]))
    at = np.linspace(0, largest, 121)
    # Censored margins are known to be at least the largest radius.
    reach = np.where(arrays["censored"].astype(bool), np.inf, margin)
    points = [(float(x), float((right & (reach > x)).mean()) if x else float(right.mean())) for x in at]
    text = (
        f"{n:,} {settings['split']} samples: {facts['right'] / n:.1%} right when clean, median margin of those "
        f"{facts['median_margin']:.4f}; {facts['censored'] / n:.1%} were not crossed up to {largest:g}."
    )
    x = radius_label(settings["norm"], "distance")
    series = [Series("still right", points, "blue")]
    chart = charts.lines(series, x=x, y="share of samples", percent=True, domain=(0, 1))
    return {"title": f"eval/{name}", "text": text, "chart": chart}


def equilibrium(name: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray], norm: str) -> dict[str, Any]:
    """Margins of training beside distances found (equilibrium.json, equilibrium.npz)."""

    def told(value: float | None) -> str:
        return "not defined" if value is None else f"{value:.3f}"

    shown = arrays["clean_right"].astype(bool) & arrays["found"].astype(bool)
    pairs = zip(arrays["margin"][shown].tolist(), arrays["distance"][shown].tolist(), strict=True)
    text = (
        f"{facts['compared']} of {facts['n']} training samples ({facts['wrong']} wrong when clean, {facts['unfound']} "
        f"without an adversarial image): rank correlation {told(facts['spearman'])}; below the ceiling "
        f"{told(facts['spearman_below'])}, median distance / margin {told(facts['median_ratio'])}, within one delta "
        f"{told(facts['within_delta'])}."
    )
    rows = [{"x": margin, "y": distance} for margin, distance in pairs]
    chart = charts.scatter(rows, x=radius_label(norm, "margin"), y=radius_label(norm, "distance found"))
    return {"title": f"eval/{name}", "text": text, "chart": chart}


def homing(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Trained again without a class: which images can still be attacked (classwise.json of --mode=homing)."""
    return {
        "title": name,
        "verdict": facts["verdict"],
        "where": verdict.radius(facts["norm"], facts["epsilon"]),
        "rows": facts["classes"],
    }
