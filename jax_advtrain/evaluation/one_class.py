"""The classifier that gives one class to every sample: no attack moves it, so its accuracy survives every radius."""

from collections.abc import Sequence

from jax_advtrain.evaluation.records import CLEAN, ClassCount, Record


def only_class(per_class: Sequence[ClassCount]) -> int | None:
    """The class whose samples are all right where no sample of any other class is; None where there is none such.

    Args:
      per_class: counts by class index; where only one class has samples, nothing can be told.
    """
    there = [k for k, count in enumerate(per_class) if count.n]
    right = [k for k in there if per_class[k].correct]
    if len(there) < 2 or len(right) != 1:
        return None
    (k,) = right
    return k if per_class[k].correct == per_class[k].n else None


def one_class_warnings(records: Sequence[Record]) -> list[str]:
    """A line for each split whose clean samples all get one class; empty where none does."""
    lines = []
    for record in records:
        k = only_class(record.per_class) if record.attack == CLEAN else None
        if k is not None:
            lines.append(
                f"{record.split}, clean: the samples of class {k} are all right and no others, as if the model always "
                f"said class {k}: {record.accuracy:.1%} is then that class's share, at any radius, and no robustness. "
                "Train at a smaller radius or one that grows; choose the checkpoint by its worst class too "
                "(checkpoint.best_by='sum')"
            )
    return lines
