"""A table of segmentations beside each other, from the results.json of their runs: Dice of cases over radii, by class.

python benchmarks/segmentation_table.py standard=runs/hippocampus_standard ima=runs/hippocampus_ima ... [--name=best]

Prints Markdown: the worst case over attacks with its 95% interval (bootstrap over cases), each class, and the share of
slices that are right. The runs must have been evaluated on the same samples at the same radii.
"""

import argparse
from pathlib import Path
from typing import Any

from jax_advtrain.evaluation import results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="label=workdir")
    parser.add_argument("--name", default="best", help="which evaluation, eval/NAME")
    parser.add_argument("--attack", default="worst-of", help="of which attack")
    given = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for one in given.runs:
        label, equals, folder = one.partition("=")
        if not equals:
            parser.error(f"{one!r}: give label=workdir")
        found[label] = results.read_results(Path(folder) / "eval" / given.name)
    same = {(one["data"]["ids_sha256"], one["data"]["count"]) for one in found.values()}
    if len(same) > 1:
        parser.error("the runs were evaluated on different samples")
    print("\n".join(table(found, given.attack)))


def table(found: dict[str, dict[str, Any]], attack: str) -> list[str]:
    """Lines of Markdown, one row a norm and radius, one column a run."""
    places = list(dict.fromkeys(place for one in found.values() for place in records(one, attack)))
    lines = [f"| radius | what | {' | '.join(found)} |", "|---|---|" + "---|" * len(found)]
    for place in places:
        rows: dict[str, list[str]] = {}
        for one in found.values():
            record = records(one, attack).get(place)
            if record is None or "segmentation" not in record:
                raise SystemExit(f"a run has no segmentation record of {attack} at {place}")
            dice = record["segmentation"]["dice"]
            rows.setdefault("Dice", []).append(told(dice["mean"]))
            for entry in dice["per_class"]:
                rows.setdefault(f"Dice {entry['class']}", []).append(told(entry))
            rows.setdefault("slices right", []).append(f"{record['correct'] / record['n']:.3f}")
        norm, epsilon = place
        where = "clean" if norm is None else f"{norm} {epsilon:g}"
        lines += [f"| {where} | {what} | {' | '.join(values)} |" for what, values in rows.items()]
    return lines


def records(one: dict[str, Any], attack: str) -> dict[tuple[str | None, float], dict[str, Any]]:
    """(norm, radius) -> record of clean and of that attack."""
    return {(r["norm"], r["epsilon"]): r for r in one["records"] if r["attack"] in ("clean", attack)}


def told(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return "-"
    interval = "" if entry["low"] is None else f" ({entry['low']:.3f} to {entry['high']:.3f})"
    return f"{entry['value']:.3f}{interval}"


if __name__ == "__main__":
    main()
