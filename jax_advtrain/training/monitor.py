"""How robust the model is while it trains: a few attacks on a fixed part of the validation set, each epoch; and what
follows from it: class by class for the method's end of an epoch, and when training stops early."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jax_advtrain.data import Dataset
from jax_advtrain.defenses import HeldOut
from jax_advtrain.evaluation import volumes
from jax_advtrain.evaluation.attack_dataset import attack_dataset, first, name_seed
from jax_advtrain.evaluation.suite import Member
from jax_advtrain.tasks import CLASSIFICATION, Task


def monitor(
    logits_fn: Callable[[jax.Array], jax.Array],
    data: Dataset,
    num_samples: int,
    members: Sequence[Member],
    mesh: Mesh,
    *,
    norm: str,
    epsilon: float,
    seed: int,
    batch_size: int = 256,
    epoch: int = 0,
    task: Task = CLASSIFICATION,
) -> HeldOut:
    """A sample counts as robust if it is right clean and under every member; its randomness is the same each epoch.

    Of segmentation the robust Dice is that of the worst of all members' images, sample by sample.

    Args:
      data: the validation set; the first `num_samples` (where it has groups: so many of them) are attacked.
      norm, epsilon: of all members, in pixel units of [0, 1].
      epoch: how many epochs are done.
      task: of the model; attacks must have been made for it.
    """
    clean = attack_dataset(None, logits_fn, data, mesh, batch_size=batch_size, task=task)
    part = first(data, num_samples)
    rows = np.flatnonzero(np.isin(data.ids, part.ids))
    robust, worst, score = clean.is_right[rows], clean.prediction[rows], clean.score[rows]
    for member in members:
        found = attack_dataset(
            member.build(norm),
            logits_fn,
            part,
            mesh,
            norm=norm,
            epsilon=epsilon,
            seed=name_seed(seed, "monitor " + member.label),
            batch_size=batch_size,
            task=task,
        )
        robust = robust & found.is_right
        if task.is_dense:
            worse = found.score > score
            worst[worse], score[worse] = found.prediction[worse], found.score[worse]
    if task.is_dense:
        return HeldOut(
            epoch,
            *_in_all(clean.is_right),
            *_in_all(robust),
            *(_dice(one, prediction) for one, prediction in ((data, clean.prediction), (part, worst))),
        )
    by_class = partial(_by_class, num_classes=data.num_classes)
    return HeldOut(epoch, *by_class(data.labels, clean.is_right), *by_class(part.labels, robust))


def _by_class(labels: np.ndarray, right: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """How many samples each class has, and how many of them are right."""
    return np.bincount(labels, minlength=num_classes), np.bincount(labels[right], minlength=num_classes)


def _in_all(right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many samples there are, and how many of them are right, as the counts of one class."""
    return np.array([right.size]), np.array([np.sum(right)])


def _dice(data: Dataset, prediction: np.ndarray) -> np.ndarray:
    """(foreground,) the mean over cases of the Dice of each class."""
    groups = data.ids if data.groups is None else data.groups
    overlap = volumes.overlaps(prediction, data.labels, data.num_classes)
    return volumes.class_means(volumes.dice_by_case(overlap, groups)[1])


def summary(found: HeldOut) -> dict[str, Any]:
    """The part of an epoch's log line: accuracies, and the counts of each class; of segmentation the Dice of each
    foreground class (None where none of it is there or predicted) and their means."""

    def counts(count, right):
        return {"n": count.tolist(), "correct": right.tolist()}

    shares = {
        "clean_accuracy": float(found.clean_right.sum() / found.clean_count.sum()),
        "robust_accuracy": float(found.robust_right.sum() / found.robust_count.sum()),
    }
    if found.clean_dice is not None and found.robust_dice is not None:
        dice = {"clean": found.clean_dice, "robust": found.robust_dice}
        return {
            **shares,
            **{f"{name}_dice": float(np.nan_to_num(np.nanmean(values))) for name, values in dice.items()},
            "dice_per_class": {name: [_or_none(value) for value in values] for name, values in dice.items()},
        }
    return {
        **shares,
        "per_class": {
            "clean": counts(found.clean_count, found.clean_right),
            "robust": counts(found.robust_count, found.robust_right),
        },
    }


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


BEST_BY = ("mean", "worst", "sum")


def merit(line: Mapping[str, Any], by: str = "mean") -> tuple[float, float]:
    """What makes a checkpoint the best: robust accuracy on validation, then clean accuracy; of segmentation robust
    Dice, then clean Dice.

    Args:
      line: of the log.
      by: robust accuracy of all ("mean"), of the worst class that has a sample ("worst"), or their "sum"; of
        segmentation the Dice of the foreground classes likewise.
    """
    found = line.get("validation")
    if found is None:
        return -1.0, -1.0
    if "robust_dice" in found:
        dice = found["robust_dice"]
        worst = min((value for value in found["dice_per_class"]["robust"] if value is not None), default=0.0)
        return {"mean": dice, "worst": worst, "sum": dice + worst}[by], found["clean_dice"]
    robust = found["robust_accuracy"]
    if by != "mean":
        if "per_class" not in found:  # of a log that an older version began
            return -1.0, -1.0
        counts = found["per_class"]["robust"]
        worst = min(right / n for n, right in zip(counts["n"], counts["correct"], strict=True) if n)
        robust = worst if by == "worst" else robust + worst
    return robust, found["clean_accuracy"]


def is_best(line: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]], by: str = "mean") -> bool:
    """Whether an epoch is better (see `merit`) than all before it that were monitored alike."""
    return merit(line, by) > max((merit(one, by) for one in earlier if _alike(one, line)), default=(-1.0, -1.0))


def stops_early(lines: Sequence[Mapping[str, Any]], patience: int | None, by: str = "mean") -> bool:
    """Whether training is over before its last epoch: the best (see `merit`) of the epochs that were monitored as the
    last one that was is `patience` epochs past.

    A pure function of the log, so that a run that was stopped by it is complete whenever one looks.
    """
    monitored = [line for line in lines if "validation" in line]
    if patience is None or not monitored:
        return False
    best = max((line for line in monitored if _alike(line, monitored[-1])), key=lambda line: merit(line, by))
    return lines[-1]["epoch"] - best["epoch"] >= patience


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two lines tell of the same attacks, norm, radius and samples: else their accuracies don't compare, as
    where a run went on with another radius. What an older line does not tell is taken to be the same."""

    def looked(line: Mapping[str, Any]) -> dict[str, Any]:
        found = line.get("validation", {})
        counts = found.get("per_class", {}).get("robust", {}).get("n")
        return {**{name: found.get(name) for name in ("norm", "epsilon", "attacks")}, "n": counts}

    pairs = zip(looked(one).values(), looked(other).values(), strict=True)
    return all(first == second for first, second in pairs if first is not None and second is not None)


def monitored_radius(config: Any) -> tuple[str, float]:
    """Norm and radius of the monitor: as given, else the defense's, the evaluation's middle one, or the ceiling."""
    defense = config.defense
    norm = config.monitor.norm or defense.get("norm", "linf")
    evaluated = tuple(config.eval[f"epsilons_{norm}"])
    middle = evaluated[len(evaluated) // 2] if evaluated else defense.get("eps_max", 0.1)
    return norm, float(config.monitor.epsilon or defense.get("epsilon") or middle)
