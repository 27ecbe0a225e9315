"""results.json, per_sample.npz and (segmentation) per_case.npz: what an evaluation leaves behind, whole or not at all.

The counting lies in `evaluation.records` and `evaluation.masking` and is offered from here too.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO

import jsonschema
import jsonschema.exceptions
import numpy as np

from jax_advtrain.evaluation.masking import masking_warnings
from jax_advtrain.evaluation.one_class import one_class_warnings
from jax_advtrain.evaluation.records import (
    CLEAN,
    WORST_OF,
    ClassCount,
    Outcome,
    Record,
    WorstCase,
    attack_names,
    curve_area,
    headline,
    make_record,
    radii,
    worst_of,
)

__all__ = [
    "CLEAN",
    "SCHEMA_VERSION",
    "WORST_OF",
    "ClassCount",
    "Outcome",
    "Record",
    "WorstCase",
    "attack_names",
    "build_results",
    "check_results",
    "curve_area",
    "headline",
    "make_record",
    "masking_warnings",
    "per_sample_arrays",
    "radii",
    "read_per_sample",
    "read_results",
    "record_warnings",
    "records_of",
    "results_table",
    "sample_key",
    "schema",
    "worst_of",
    "write_atomically",
    "write_results",
]

SCHEMA_VERSION = 1
RESULTS_NAME = "results.json"
PER_SAMPLE_NAME = "per_sample.npz"
PER_CASE_NAME = "per_case.npz"


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of results.json, as it lies in the package."""
    text = resources.files("jax_advtrain.evaluation").joinpath("results.schema.json").read_text("utf-8")
    return json.loads(text)


def write_atomically(path: str | os.PathLike, write: Callable[[BinaryIO], Any]) -> Path:
    """Calls `write` on a file beside `path`, then puts it in place: never half a file, not even for a reader.

    Makes the folder if needed. On any failure (a full disk) the half-written file is removed and the old one
    kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _plain(value: Any, where: str) -> Any:
    """JSON's own types only; numpy scalars and arrays are turned, keys that are no text and NaN are refused."""
    if isinstance(value, Mapping):
        for key in value:
            # json.dumps would turn a float key into text without a word; the schema refuses text that is a number.
            if not isinstance(key, str):
                raise ValueError(f"results: key {key!r} in {where} must be a name, not a number")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), where)
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"results: {where} is {value}, must be a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"results: {where} is a {type(value).__name__}, must be a plain value (number, text, list, dict)")


def _record_to_dict(record: Record) -> dict[str, Any]:
    return dict(
        attack=record.attack,
        settings=dict(record.settings),
        norm=record.norm,
        epsilon=record.epsilon,
        split=record.split,
        n=record.n,
        correct=record.correct,
        per_class=[dict(n=count.n, correct=count.correct) for count in record.per_class],
        passes=record.passes,
        seconds=record.seconds,
        **({} if record.segmentation is None else dict(segmentation=dict(record.segmentation))),
    )


def records_of(results: Mapping[str, Any]) -> list[Record]:
    """The records of a read results.json, as `Record`s."""
    return [
        Record(**{**entry, "per_class": tuple(ClassCount(**count) for count in entry["per_class"])})
        for entry in results["records"]
    ]


def build_results(
    model: Mapping[str, Any], data: Mapping[str, Any], records: Sequence[Record], warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """The whole of results.json from plain parts, checked; headline and warnings follow from the records.

    Args:
      model: plain values that say which model this is (name, fields, checkpoint, step).
      data: the data set's fingerprint (name, version, split, count, labels_sha256, ids_sha256).
      warnings: lines that go before those that follow from the records: `check_model.lines(findings)`.

    Raises:
      ValueError: a part that is not plain (NaN, a number as key, an object), or `check_results` refuses.
    """
    results = dict(
        schema_version=SCHEMA_VERSION,
        model=_plain(model, "model"),
        data=_plain(data, "data"),
        records=[
            _plain(_record_to_dict(record), f"records[{i}] ({record.attack})") for i, record in enumerate(records)
        ],
        headline=_plain(headline(records), "headline"),
        warnings=[*map(str, warnings), *record_warnings(records)],
    )
    check_results(results)
    return results


def record_warnings(records: Sequence[Record]) -> list[str]:
    """What the records themselves call in question: one class for all samples, signs of masked gradients."""
    return [*one_class_warnings(records), *masking_warnings(records)]


def check_results(results: Any, where: str = "results") -> None:
    """Raises one-line ValueError unless `results` fits the schema and its counts add up."""
    version = results.get("schema_version") if isinstance(results, Mapping) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise ValueError(f"{where}: schema_version {version} was met, this jax_advtrain reads {SCHEMA_VERSION}")
    validator = jsonschema.Draft202012Validator(schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(results))
    if error is not None:
        raise ValueError(f"{where}: {error.json_path} does not fit the schema: {' '.join(error.message.split())[:200]}")
    for i, entry in enumerate(results["records"]):
        classes = entry["per_class"]
        pairs = [(entry["n"], entry["correct"]), *((count["n"], count["correct"]) for count in classes)]
        sums = tuple(sum(count[name] for count in classes) for name in ("n", "correct"))
        if any(correct > n for n, correct in pairs) or (classes and sums != pairs[0]):
            raise ValueError(f"{where}: $.records[{i}]: counts do not add up (n, correct, per_class)")
    for i, curve in enumerate(results["headline"]):
        if len(curve["epsilons"]) != len(curve["accuracy"]):
            raise ValueError(f"{where}: $.headline[{i}]: epsilons and accuracy must have one entry each per radius")


def sample_key(kind: str, norm: str, epsilon: float) -> str:
    """Name of an array in per_sample.npz: `sample_key("winner", "linf", 0.1)` is "winner/linf/0.1"."""
    return f"{kind}/{norm}/{float(epsilon)!r}"


def per_sample_arrays(
    ids: np.ndarray,
    labels: np.ndarray,
    clean: Outcome,
    attacks: Sequence[Outcome],
    cases: Sequence[WorstCase],
) -> dict[str, np.ndarray]:
    """The arrays of per_sample.npz, one entry a sample; `attack_names` (text) is what `winner` indexes.

    Args:
      ids: int (N,), stable positions in the source split. labels: int (N,).
      attacks, cases: what went into `worst_of`, and what came out.
    """
    arrays: dict[str, np.ndarray] = dict(
        id=np.asarray(ids, np.int64),
        label=np.asarray(labels, np.int32),
        clean_prediction=np.asarray(clean.prediction, np.int32),
        attack_names=np.array(attack_names(attacks)),
    )
    if clean.confidence is not None:
        arrays["clean_confidence"] = clean.confidence.astype(np.float32)
    for case in cases:
        place = (str(case.record.norm), case.record.epsilon)
        arrays[sample_key("prediction", *place)] = case.prediction
        arrays[sample_key("winner", *place)] = case.winner
        arrays[sample_key("distance", *place)] = case.distance.astype(np.float32)
        if case.confidence is not None:
            arrays[sample_key("confidence", *place)] = case.confidence.astype(np.float32)
    return arrays


def _check_per_sample(per_sample: Mapping[str, np.ndarray], counts: set[int]) -> dict[str, Any]:
    samples = len(per_sample["id"])
    if samples not in counts:
        raise ValueError(f"per_sample.npz: {samples} samples, the records counted {sorted(counts)}")
    for name, array in per_sample.items():
        if array.dtype == object:
            raise ValueError(f"per_sample.npz: array {name!r} holds objects; only numbers and text can be kept")
        if name != "attack_names" and len(array) != samples:
            raise ValueError(f"per_sample.npz: array {name!r} has {len(array)} entries, must have {samples}")
    return dict(per_sample)


def write_results(
    folder: str | os.PathLike,
    *,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    records: Sequence[Record],
    per_sample: Mapping[str, np.ndarray] | None = None,
    warnings: Sequence[str] = (),
    per_case: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Writes per_sample.npz and per_case.npz (if given), then results.json, each atomically; returns the path of
    results.json.

    results.json goes last, so that it never stands without its samples. Nothing is written if a check refuses.

    Raises:
      ValueError: see `build_results`; per-sample arrays that hold objects or another count than the records.
      OSError: no space, no permission; nothing half-written is left.
    """
    results = build_results(model, data, records, warnings)
    folder = Path(folder)
    if per_sample is not None:
        arrays = _check_per_sample(per_sample, {record.n for record in records})
        write_atomically(folder / PER_SAMPLE_NAME, lambda file: np.savez_compressed(file, **arrays))
    if per_case:
        rows: dict[str, Any] = dict(per_case)
        write_atomically(folder / PER_CASE_NAME, lambda file: np.savez_compressed(file, **rows))
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    return write_atomically(folder / RESULTS_NAME, lambda file: file.write(text.encode("utf-8")))


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """results.json (or the folder that holds it), checked.

    Raises:
      ValueError: a truncated or foreign file. FileNotFoundError: no such file.
    """
    path = Path(path)
    path = path / RESULTS_NAME if path.is_dir() else path
    try:
        results = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not whole JSON ({error}); evaluate again to write it anew") from None
    check_results(results, str(path))
    return results


def read_per_sample(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """per_sample.npz (or the folder that holds it) as a dict of arrays; nothing in it is ever unpickled."""
    path = Path(path)
    with np.load(path / PER_SAMPLE_NAME if path.is_dir() else path, allow_pickle=False) as arrays:
        return dict(arrays)


def read_per_case(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """per_case.npz of a folder as a dict of arrays; {} where there is none."""
    file = Path(path) / PER_CASE_NAME
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _worst_class(record: Record, names: Sequence[str] = ()) -> str:
    shares = [(count.correct / count.n, index) for index, count in enumerate(record.per_class) if count.n > 0]
    if not shares:
        return "-"
    share, index = min(shares)
    name = str(names[index]) if index < len(names) else str(index)
    return f"{share:.1%} ({f'class {name}' if name.isdigit() else name})"


def _dice_table(records: Sequence[Record]) -> list[list[str]]:
    rows: list[list[str]] = []
    for record in records:
        if record.segmentation is None or record.attack not in (CLEAN, WORST_OF):
            continue
        dice = record.segmentation["dice"]
        if not rows:
            classes = [f"Dice {one['class']}" for one in dice["per_class"]]
            rows.append(["attacked in", "epsilon", "Dice", "95% interval", *classes, "slices right"])
        whole = dice["mean"]
        interval = "-" if whole["low"] is None else f"{whole['low']:.3f} to {whole['high']:.3f}"
        values = [_number(one["value"]) for one in dice["per_class"]]
        where = record.norm or CLEAN
        rows.append(
            [where, f"{record.epsilon:.4g}", _number(whole["value"]), interval, *values, f"{record.accuracy:.1%}"]
        )
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def results_table(results: Mapping[str, Any]) -> list[list[str]]:
    """Rows of text for a terminal, header first: per radius worst case, weakest class, strongest attack; of
    segmentation Dice over cases."""
    records = records_of(results)
    if any(record.segmentation is not None for record in records):
        return _dice_table(records)
    splits = list(dict.fromkeys(record.split for record in records))
    names = results["model"].get("class_names") or ()
    rows = [["attacked in", "epsilon", "right", "weakest class", "strongest attack alone"]]
    for split in splits:
        here = [record for record in records if record.split == split]
        suffix = f" ({split})" if len(splits) > 1 else ""
        clean = [r for r in here if r.attack == CLEAN]
        rows += [[CLEAN + suffix, "0", f"{r.accuracy:.1%}", _worst_class(r, names), "-"] for r in clean]
        for norm, epsilon in radii(here):
            at = [record for record in here if (record.norm, record.epsilon) == (norm, epsilon)]
            alone = min((r for r in at if r.attack != WORST_OF), key=lambda r: r.accuracy, default=None)
            strongest = f"{alone.attack} {alone.accuracy:.1%}" if alone else "-"
            for worst in [record for record in at if record.attack == WORST_OF]:
                weakest = _worst_class(worst, names)
                rows.append([norm + suffix, f"{epsilon:.4g}", f"{worst.accuracy:.1%}", weakest, strongest])
        for curve in results["headline"]:
            if curve.get("split", split) == split:
                rows.append([curve["norm"] + suffix, "area", f"{curve['area']:.3f}", "-", "-"])
    return rows
