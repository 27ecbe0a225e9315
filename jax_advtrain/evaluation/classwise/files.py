"""classwise.json, arrays.npz and the CSV tables: what the class-wise studies leave behind, each file whole or not."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema.exceptions
import numpy as np

from jax_advtrain.evaluation.classwise.facts import SCHEMA_VERSION
from jax_advtrain.evaluation.results import write_atomically

FACTS_NAME = "classwise.json"
ARRAYS_NAME = "arrays.npz"


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of classwise.json, as it lies in the package."""
    text = resources.files("jax_advtrain.evaluation.classwise").joinpath("classwise.schema.json").read_text("utf-8")
    return json.loads(text)


def check(facts: Any, where: str = FACTS_NAME) -> None:
    """Raises one-line ValueError unless the content fits the schema of its kind."""
    version = facts.get("schema_version") if isinstance(facts, Mapping) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise ValueError(f"{where}: schema_version {version} was met, this jax_advtrain reads {SCHEMA_VERSION}")
    error = _error(schema(), facts)
    # The kind's own definition, not one of several: so that the message is of the right one.
    error = error or _error({**schema(), "$ref": f"#/$defs/{facts['kind']}"}, facts)
    if error is not None:
        raise ValueError(f"{where}: {error.json_path} does not fit the schema: {' '.join(error.message.split())[:200]}")


def _error(of: Mapping[str, Any], facts: Any):
    return jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(of).iter_errors(facts))


def write(folder: str | os.PathLike, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> Path:
    """Writes arrays.npz, the tables, then classwise.json, which so never stands without them; returns its path.

    Raises:
      ValueError: the content does not fit the schema; nothing is written then.
    """
    check(facts)
    folder = Path(folder)
    if arrays is not None:
        kept: dict[str, Any] = {name: np.asarray(values) for name, values in arrays.items()}
        write_atomically(folder / ARRAYS_NAME, lambda file: np.savez_compressed(file, **kept))
    for name, rows in tables(facts).items():
        write_table(folder / f"{name}.csv", rows)
    text = json.dumps(facts, indent=1, allow_nan=False) + "\n"
    return write_atomically(folder / FACTS_NAME, lambda file: file.write(text.encode("utf-8")))


def read(path: str | os.PathLike) -> dict[str, Any]:
    """classwise.json (or the folder that holds it), checked.

    Raises:
      ValueError: a truncated or foreign file. FileNotFoundError: no such file.
    """
    path = Path(path)
    path = path / FACTS_NAME if path.is_dir() else path
    try:
        facts = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not whole JSON ({error}); remove its folder and diagnose again") from None
    check(facts, str(path))
    return facts


def read_arrays(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """arrays.npz as a dict; nothing in it is ever unpickled."""
    with np.load(Path(folder) / ARRAYS_NAME, allow_pickle=False) as arrays:
        return dict(arrays)


def write_table(path: str | os.PathLike, rows: Iterable[Sequence[Any]]) -> Path:
    """One CSV file, the header first; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if cell is None else cell for cell in row] for row in rows)
    return write_atomically(path, lambda file: file.write(text.getvalue().encode("utf-8")))


def tables(facts: Mapping[str, Any]) -> dict[str, list[list[Any]]]:
    """{name of the file: rows, header first} of a diagnosis; nothing of the other kinds, whose JSON is small."""
    if facts["kind"] != "diagnosis":
        return {}
    names = facts["class_names"]
    accuracy, edges, confidences = facts["accuracy"], facts["flow"], facts["confidence"]
    found = {
        "per_class": [
            ["class", "attack", "n", "correct", "accuracy", "low", "high", "worst_share", "weakness_p"],
            *(
                [name, one["attack"], *row.values(), one["spread"]["worst_shares"][k], one["weakness_p"][k]]
                for one in accuracy
                for k, (name, row) in enumerate(zip(names, one["per_class"], strict=True))
            ),
        ],
        "spread": _of_dicts([{"attack": one["attack"], **_without(one["spread"], "worst_shares")} for one in accuracy]),
        "flow": [
            ["attack", "source", "target", "count", "share", "low", "high", "reverse", "p_value"],
            *(
                [one["attack"], names[e["source"]], names[e["target"]], *list(e.values())[2:]]
                for one in edges
                for e in one["edges"]
            ),
        ],
        "consistency": _pairs(facts["consistency"]),
        "gains": [
            ["weaker", "stronger", "class", "gain", "in_weaker_half"],
            *(
                [one["weaker"], one["stronger"], name, one["per_class"][k], k in one["weaker_half"]]
                for one in facts["gains"]
                for k, name in enumerate(names)
            ),
        ],
        "confidence": [
            ["attack", "class", "variance", "image_variance", "on_truth"],
            *(
                [one["attack"], name, *row.values()]
                for one in confidences
                for name, row in zip(names, one["per_class"], strict=True)
            ),
        ],
    }
    if (sweep := facts["temperature"]) is not None:
        found["temperature"] = [
            ["temperature", "class", "accuracy", "wins"],
            *(
                [value, name, sweep["accuracy"][t][k], sweep["winners"][t][k]]
                for t, value in enumerate(sweep["temperatures"])
                for k, name in enumerate(names)
            ),
        ]
    if facts["weight_norm"]["why_not"] is None:
        worst = accuracy[-1]["per_class"]
        norms = facts["weight_norm"]["norms"]
        found["weight_norm"] = [
            ["class", "norm", "robust_accuracy"],
            *([name, norms[k], worst[k]["accuracy"]] for k, name in enumerate(names)),
        ]
    if facts["epochs"]["why_not"] is None:
        epochs = facts["epochs"]
        found["epochs"] = [
            ["epoch", "class", "clean", "robust"],
            *(
                [number, name, epochs["clean"][e][k], epochs["robust"][e][k]]
                for e, number in enumerate(epochs["epochs"])
                for k, name in enumerate(names)
            ),
        ]
    return found


def _pairs(agreement: Mapping[str, Any]) -> list[list[Any]]:
    values = [name for name in agreement if name != "names"]
    names = agreement["names"]
    return [
        ["first", "second", *values],
        *(
            [names[i], names[j], *(agreement[value][i][j] for value in values)]
            for i in range(len(names))
            for j in range(i + 1, len(names))
        ),
    ]


def _of_dicts(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def _without(values: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in left_out}
