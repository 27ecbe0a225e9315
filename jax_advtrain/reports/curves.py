"""Accuracy against radius: the worst case thick, every attack thin, clean marked."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from jax_advtrain.evaluation.masking import is_cross_entropy_pgd
from jax_advtrain.evaluation.results import CLEAN, WORST_OF, Record, headline, radii, records_of
from jax_advtrain.reports import style

ATTACK_COLOURS = (style.YELLOW, style.SKY, style.BLUE, style.RED, style.PINK, style.ORANGE)


def accuracy_vs_radius(results: Mapping[str, Any], path: str | os.PathLike, *, title: str = "") -> Path:
    """One panel a norm, from results.json's content; several splits would be drawn apart by several calls.

    Args:
      results: as `read_results` gives it. Only the first split in it is drawn.
    """
    records = records_of(results)
    records = [record for record in records if record.split == records[0].split]
    norms = list(dict.fromkeys(norm for norm, _ in radii(records)))
    figure, grid = style.new_figure(max(5.2, 4.2 * len(norms)), 4.4, 1, max(1, len(norms)), sharey=True)
    clean = next((record for record in records if record.attack == CLEAN), None)
    looks = _looks(records)
    areas = {curve["norm"]: curve["area"] for curve in headline(records)}
    for axes, norm in zip(grid[0], norms, strict=False):
        if clean:
            _mark_clean(axes, clean)
        for attack, look in looks.items():
            _curve(axes, [r for r in records if (r.attack, r.norm) == (attack, norm)], clean, attack, **look)
        area = f"   area {areas[norm]:.3f}" if norm in areas else ""
        style.dress(axes, x=style.radius_label(norm), title=f"{style.NORM_NAMES.get(norm, norm)}{area}")
        axes.set_xlim(left=0)
    for axes in grid[0]:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if not norms:
        if clean:
            _mark_clean(grid[0, 0], clean)
        style.dress(grid[0, 0], title="no attack was run")
        grid[0, 0].set_xticks([0])
    grid[0, 0].set_ylabel(f"right, of {records[0].n:,} {records[0].split} samples", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    style.legend(figure, loc="outside right upper")
    return style.save(figure, path)


def _mark_clean(axes: Axes, clean: Record) -> None:
    axes.axhline(clean.accuracy, color=style.GREY, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    label = f"clean ({clean.accuracy:.1%})"
    axes.plot(0, clean.accuracy, "D", color=style.GREEN, markersize=6, clip_on=False, zorder=6, label=label)


def _curve(axes, records: list[Record], clean: Record | None, label: str, **look) -> None:
    points = {0.0: clean.accuracy} if clean else {}
    points |= {record.epsilon: record.accuracy for record in records}
    if records:
        epsilons = sorted(points)
        axes.plot(epsilons, [points[epsilon] for epsilon in epsilons], label=label, **look)


def _looks(records: list[Record]) -> dict[str, dict[str, Any]]:
    """Line style by attack, the same in all panels: cross entropy solid, other losses dashed, noise dotted."""
    looks: dict[str, dict[str, Any]] = {}
    if any(record.attack == WORST_OF for record in records):
        looks[WORST_OF] = dict(color=style.BLACK, linewidth=3.2, marker="o", markersize=5, zorder=5)
    attacks = {record.attack: record for record in records if record.attack not in (CLEAN, WORST_OF)}
    noises = [attack for attack in attacks if attack.endswith("noise")]
    searches = [attack for attack in attacks if attack not in noises]
    for i, attack in enumerate(searches):
        dashed = attack.startswith("pgd") and not is_cross_entropy_pgd(attacks[attack])
        line = dict(linestyle="--" if dashed else "-", marker="osv^<>dX"[i % 8])
        colour = ATTACK_COLOURS[i % len(ATTACK_COLOURS)]
        looks[attack] = dict(color=colour, linewidth=1.2, markersize=4, zorder=3, **line)
    for attack, marker in zip(noises, itertools.cycle("xP")):
        looks[attack] = dict(color=style.GREY, linewidth=1.2, linestyle=":", marker=marker, markersize=5, zorder=2)
    return looks
