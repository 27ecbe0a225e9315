"""Methods beside each other: one table (Markdown, CSV, LaTeX), from what `evaluation.comparison` found."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_advtrain.evaluation.comparison import ACCURACY, AREA, SECONDS
from jax_advtrain.evaluation.paired import SIGNIFICANCE
from jax_advtrain.evaluation.results import CLEAN, WORST_OF, write_atomically
from jax_advtrain.reports.style import NORM_NAMES

NOTE = (
    "Mean ± sample deviation over seeds; without ±: one seed. Bold: the best of a row; ≈: within noise of the best, by "
    f"a paired test over the same samples (p >= {SIGNIFICANCE} after Holm; McNemar where each method has one seed, "
    "else random signs) or over seeds (Welch, where both have two or more). Tested is what is known sample by sample: "
    "clean, worst-of, AutoAttack; in the other rows bold is the best number, not more. Area: under accuracy(radius), "
    "trapezoids over the largest radius. Radii in pixel units of [0, 1]."
)
_KEY = ("what", "attack", "norm", "epsilon")


def rows_of_text(compared: Mapping[str, Any]) -> list[list[str]]:
    """The table for a terminal, header first: clean, the worst case of each radius, areas, time."""
    shown = [row for row in compared["rows"] if row["attack"] in (CLEAN, WORST_OF) or row["what"] == SECONDS]
    shown = [row for row in shown if row["what"] in (ACCURACY, AREA, SECONDS)]
    return [["", *compared["methods"]], *([label(row), *_cells(compared, row)] for row in shown)]


def write_tables(compared: Mapping[str, Any], stem: str | os.PathLike) -> list[Path]:
    """Writes <stem>.md, .csv and .tex, each whole or not at all; returns their paths."""
    written = (("md", _markdown(compared)), ("csv", _csv(compared)), ("tex", _latex(compared)))
    paths = [Path(f"{os.fspath(stem)}.{kind}") for kind, _ in written]
    for path, (_, text) in zip(paths, written, strict=True):
        write_atomically(path, lambda file, text=text: file.write(text.encode("utf-8")))
    return paths


def label(row: Mapping[str, Any]) -> str:
    """What a row tells: "L-inf 0.1, pgd-10-ce", "clean, worst class", "L2, area"."""
    if row["what"] == SECONDS:
        return "training, seconds"
    place = str(NORM_NAMES.get(row["norm"], row["norm"] or CLEAN))
    if row["what"] == AREA:
        return f"{place}, area"
    place += f" {row['epsilon']:g}" if row["norm"] else ""
    parts = [place, *([row["attack"]] if row["norm"] else []), *([row["what"]] if row["what"] != ACCURACY else [])]
    return ", ".join(parts)


def _cells(compared: Mapping[str, Any], row: Mapping[str, Any], plus: str = "±") -> list[str]:
    return [number(row, row["values"][name], plus) + _mark(compared, row, name) for name in compared["methods"]]


def number(row: Mapping[str, Any], value: Mapping[str, Any] | None, plus: str = "±") -> str:
    """Mean and deviation as text; "-" where it is not known."""
    if value is None:
        return "-"
    digits = 0 if row["what"] == SECONDS else 3
    deviation = "" if value["deviation"] is None else f" {plus} {value['deviation']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{deviation}"


def is_best(row: Mapping[str, Any], name: str) -> bool:
    """Ties are all best."""
    value = row["values"][name]
    return value is not None and value["mean"] == row["values"][row["best"]]["mean"]


def is_within_noise(compared: Mapping[str, Any], row: Mapping[str, Any], name: str) -> bool:
    """Whether the difference to the best of the row is within noise; False where it was not tested."""
    between = {name, row["best"]}
    tests = (one for one in compared["tests"] if {one["first"], one["second"]} == between)
    found = next((one for one in tests if _same(one, row)), None)
    return found is not None and found["within_noise"]


def _mark(compared: Mapping[str, Any], row: Mapping[str, Any], name: str) -> str:
    """≈ where the difference to the best of the row is within noise."""
    return " ≈" if is_within_noise(compared, row, name) else ""


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[field] == other[field] for field in _KEY)


def _markdown(compared: Mapping[str, Any]) -> str:
    names = list(compared["methods"])
    lines = [f"# {len(names)} methods on {compared['data']['name']}", "", _samples(compared), ""]
    seeds = [str(len(one["seeds"])) for one in compared["methods"].values()]
    rows = []
    for row in compared["rows"]:
        cells = _cells(compared, row)
        bold = [f"**{cell}**" if is_best(row, name) else cell for name, cell in zip(names, cells, strict=True)]
        rows.append([label(row), *bold])
    lines += _pipes([["", *names], ["seeds", *seeds], *rows])
    lines += ["", NOTE]
    if others := [name for name in names if name != compared["reference"]]:
        lines += ["", f"## Difference from {compared['reference']}", ""]
        lines += ["Each method's accuracy less that of it, and the adjusted p value over samples.", ""]
        lines += _pipes([["", *others], *difference_rows(compared, others)])
    return "\n".join(lines) + "\n"


def _samples(compared: Mapping[str, Any]) -> str:
    main, *others = compared["samples"]
    beside = "".join(f"; AutoAttack on the first {n}" for n in others)
    return f"{main} samples of the {compared['data']['split']} split{beside}."


def difference_rows(compared: Mapping[str, Any], others: Sequence[str]) -> list[list[str]]:
    """Of each tested row, label first: each method's difference from the reference, and how sure it is."""
    rows = []
    for row in compared["rows"]:
        tests = [one for one in compared["tests"] if _same(one, row)]
        cells = []
        for name in others:
            one = next((one for one in tests if {one["first"], one["second"]} == {name, compared["reference"]}), None)
            if one is not None:
                value = one["difference"] if one["first"] == name else -one["difference"]
                noise = "within noise" if one["within_noise"] else f"p {one['p_adjusted']:.2g}"
                cells.append(f"{value:+.3f} ({noise})")
        if cells:
            rows.append([label(row), *cells])
    return rows


def _pipes(rows: Sequence[Sequence[str]]) -> list[str]:
    header, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [header, "|" + "---|" * len(rows[0]), *body]


def _csv(compared: Mapping[str, Any]) -> str:
    """One line a quantity and method, so that any program can turn it as it likes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_KEY, "method", "seeds", "mean", "deviation", "is_best", "within_noise_of_best"])
    for row in compared["rows"]:
        for name, value in row["values"].items():
            if value is None:
                continue
            noise = int(bool(_mark(compared, row, name)))
            deviation = "" if value["deviation"] is None else repr(value["deviation"])
            writer.writerow(
                [
                    *(row["what"], row["attack"], row["norm"] or "", row["epsilon"], name, len(value["each"])),
                    *(repr(value["mean"]), deviation, int(is_best(row, name)), noise),
                ]
            )
    return text.getvalue()


def _latex(compared: Mapping[str, Any]) -> str:
    names = list(compared["methods"])
    lines = [f"\\begin{{tabular}}{{l{'r' * len(names)}}}", "\\hline", _ampersands(["", *names]), "\\hline"]
    for row in compared["rows"]:
        cells = [_escaped(cell) for cell in _cells(compared, row)]
        bold = [f"\\textbf{{{cell}}}" if is_best(row, name) else cell for name, cell in zip(names, cells, strict=True)]
        lines.append(f"{_escaped(label(row))} & {' & '.join(bold)} \\\\")
    return "\n".join([*lines, "\\hline", "\\end{tabular}"]) + "\n"


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join(map(_escaped, cells)) + " \\\\"


def _escaped(text: str) -> str:
    for sign, written in (("_", "\\_"), ("%", "\\%"), ("&", "\\&"), ("#", "\\#"), ("±", "$\\pm$"), ("≈", "$\\approx$")):
        text = text.replace(sign, written)
    return text
