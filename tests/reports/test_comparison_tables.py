"""The table's three writings say the same, and mark what is best and what is within noise of it."""

import csv
import itertools

import pytest

from jax_advtrain.reports import comparison, comparison_figure, style


def row(what, attack, norm, epsilon, best, **values):
    told = {
        name: each and {"mean": sum(each) / len(each), "deviation": 0.01 if each[1:] else None, "each": each}
        for name, each in values.items()
    }
    return dict(what=what, attack=attack, norm=norm, epsilon=epsilon, best=best, values=told)


def paired(attack, norm, epsilon, difference, within_noise):
    place = dict(what="accuracy", attack=attack, norm=norm, epsilon=epsilon, first="pgd_at", second="ima")
    return {**place, "difference": difference, "p_adjusted": 0.012, "within_noise": within_noise}


COMPARED = {
    "methods": {"pgd_at": {"seeds": [0]}, "ima": {"seeds": [0, 1]}},
    "data": {"name": "digits", "split": "test"},
    "samples": [360],
    "reference": "pgd_at",
    "rows": [
        row("accuracy", "clean", None, 0.0, "ima", pgd_at=[0.9], ima=[0.92, 0.94]),
        row("accuracy", "worst-of", "linf", 0.1, "pgd_at", pgd_at=[0.8], ima=[0.7, 0.72]),
        row("accuracy", "worst-of", "linf", 0.2, "pgd_at", pgd_at=[0.0], ima=[0.0, 0.0]),
        row("AUROC", "worst-of", "linf", 0.1, "ima", pgd_at=None, ima=[0.5, 0.6]),
        row("area", "worst-of", "linf", 0.0, "pgd_at", pgd_at=[0.6], ima=[0.5, 0.5]),
        row("training seconds", "", None, 0.0, "pgd_at", pgd_at=[100.0], ima=[200.0, 300.0]),
    ],
    "tests": [paired("clean", None, 0.0, -0.03, True), paired("worst-of", "linf", 0.1, 0.09, False)],
}


def test_tables(tmp_path):
    paths = comparison.write_tables(COMPARED, tmp_path / "comparison")
    assert [path.name for path in paths] == ["comparison.md", "comparison.csv", "comparison.tex"]
    markdown, latex = paths[0].read_text(), paths[2].read_text()
    assert "| clean | 0.900 ≈ | **0.930 ± 0.010** |" in markdown
    assert "| L-inf 0.1, worst-of | **0.800** | 0.710 ± 0.010 |" in markdown
    assert "| L-inf 0.2, worst-of | **0.000** | **0.000 ± 0.010** |" in markdown
    assert "| L-inf 0.1, worst-of, AUROC | - | **0.550 ± 0.010** |" in markdown
    assert "| training, seconds | **100** | 250 ± 0 |" in markdown and "| seeds | 1 | 2 |" in markdown
    # The difference is told as that of the method to the reference: the sign of the test turns.
    assert "| clean | +0.030 (within noise) |" in markdown and "| L-inf 0.1, worst-of | -0.090 (p 0.012) |" in markdown
    assert r"clean & 0.900 $\approx$ & \textbf{0.930 $\pm$ 0.010} \\" in latex and r"& pgd\_at & ima \\" in latex
    with open(paths[1]) as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 11  # a number that is not known has no line
    assert [(line["method"], float(line["mean"]), line["within_noise_of_best"]) for line in lines[:2]] == [
        ("pgd_at", 0.9, "1"),
        ("ima", pytest.approx(0.93), "0"),
    ]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_terminal_and_figure(tmp_path):
    rows = comparison.rows_of_text(COMPARED)
    assert rows[0] == ["", "pgd_at", "ima"] and len({len(one) for one in rows}) == 1
    assert [one[0] for one in rows[1:]] == [
        *("clean", "L-inf 0.1, worst-of", "L-inf 0.2, worst-of", "L-inf, area", "training, seconds"),
    ]
    assert comparison_figure.comparison_figure(COMPARED, tmp_path / "a.png").stat().st_size > 15_000
    alone = {**COMPARED, "rows": COMPARED["rows"][:1]}
    assert comparison_figure.comparison_figure(alone, tmp_path / "b.png").stat().st_size > 1_000


def test_names_of_points_that_lie_close_do_not_meet(tmp_path):
    figure, grid = style.new_figure(5.0, 4.0)
    x = {f"method_{k}": {"mean": 0.9 + 0.001 * (k % 4)} for k in range(12)} | {"apart": {"mean": 0.5}, "none": None}
    y = {f"method_{k}": {"mean": 0.8 + 0.001 * (k // 4)} for k in range(12)} | {"apart": {"mean": 0.1}, "none": None}
    for name in x.keys() - {"none"}:
        grid[0, 0].plot([x[name]["mean"]], [y[name]["mean"]], "o")
    comparison_figure._name_points(figure, grid[0, 0], x, y)
    named = {text.get_text(): text.get_window_extent() for text in grid[0, 0].texts}
    assert "apart" in named and 2 <= len(named) < 13
    assert not any(one.overlaps(other) for one, other in itertools.combinations(named.values(), 2))
    style.save(figure, tmp_path / "points.png")
