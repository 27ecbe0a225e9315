"""Leaving classes out (`data.classes`, `data.exclude_classes`): which samples stay, and which labels they get.

Ids stay those of the source, so that a sample is the same sample with and without the other classes.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.data.source import Records, Source


class Selection(NamedTuple):
    """The classes that stay.

    Attributes:
      kept: their numbers in the source, rising; None: all.
      class_names: one name a label.
      new_labels: int64 (K,) new label of each class of the source; where it is left out its own, which no sample has.
    """

    kept: tuple[int, ...] | None
    class_names: tuple[str, ...]
    new_labels: np.ndarray

    def relabel(self, labels: np.ndarray) -> np.ndarray:
        """Labels int64 (n,) of the source, renumbered; a label outside its classes stays what it is."""
        inside = (labels >= 0) & (labels < len(self.new_labels))
        return np.where(inside, self.new_labels[np.where(inside, labels, 0)], labels)


def select(source: Source, config: dict[str, Any]) -> tuple[Source, Selection]:
    """Leaves classes out of all splits of a source; its records keep their ids and labels, `kept` says which are left.

    Uses of `config`: classes (to keep), exclude_classes, exclude_how ("relabel": 0..k-1 in the old order; "keep").

    Raises:
      ValueError: unknown class (the nearest valid one is named), or fewer than two left.
    """
    names = source.class_names
    chosen = config["classes"] or config["exclude_classes"]
    if chosen is None:
        return source, Selection(None, names, np.arange(len(names)))
    field = "classes" if config["classes"] else "exclude_classes"
    numbers = {number for item in chosen for number in _numbers(item, names, f"data.{field}: {source.name!r}")}
    kept = tuple(k for k in range(len(names)) if (k in numbers) == (field == "classes"))
    if len(kept) < 2:
        left = ", ".join(names[k] for k in kept) or "none"
        raise ValueError(
            f"data.{field}={chosen!r} leaves fewer than 2 of the {len(names)} classes of {source.name!r}: {left}"
        )
    new_labels = np.arange(len(names))
    if config["exclude_how"] == "relabel":
        new_labels[list(kept)] = np.arange(len(kept))
        names = tuple(names[k] for k in kept)
    dropped = np.setdiff1d(np.arange(len(new_labels)), kept)
    parts = {
        split: records and _without(records, dropped)
        for split in ("train", "validation", "test")
        for records in [getattr(source, split)]
    }
    return source._replace(**parts), Selection(kept, names, new_labels)


def _without(records: Records, dropped: np.ndarray) -> Records:
    """The records that have other labels than these. A label outside the classes stays, so that it is found."""
    labels = records.read_labels(records.ids)
    return dataclasses.replace(records, kept=records.ids[~np.isin(labels, dropped)])


def _numbers(item: str | int, names: Sequence[str], where: str) -> list[int]:
    """The classes that an item of the field names: by name, by number, or as a text several with commas between."""
    if isinstance(item, str) and item not in names and "," in item:
        return [number for part in item.split(",") if part.strip() for number in _numbers(part.strip(), names, where)]
    text = str(item).strip()
    if text in names:
        return [names.index(text)]
    # Where classes are called "1", "2", ..., the number 1 can only mean the name.
    are_numbers = any(name.isdecimal() and int(name) != number for number, name in enumerate(names))
    if text.isdecimal() and int(text) < len(names) and not are_numbers:
        return [int(text)]
    nearest = difflib.get_close_matches(text, names, n=1, cutoff=0.0)[0]
    numbers = "" if are_numbers else f", or a number 0..{len(names) - 1}"
    few = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise ValueError(f"{where} has no class {text!r}: did you mean {nearest!r}? Its classes: {few}{numbers}")
