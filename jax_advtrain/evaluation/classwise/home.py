"""Homing: of the images that were attacked INTO a class, which can still be attacked once the network never saw it?"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.evaluation.classwise.facts import SCHEMA_VERSION, plain
from jax_advtrain.evaluation.classwise.observations import Observed
from jax_advtrain.evaluation.classwise.per_class import wilson


class Home(NamedTuple):
    """What became of the images of other classes that were right clean in the full model.

    Attributes:
      left_out: the class that was left out.
      n: all of them.
      attacked_into: those that attacks took into the class; still: of these, those that the model without the class
        gets wrong, clean or attacked; share: still / attacked_into, NaN where there is none; low, high: its 95% Wilson
        interval.
      others: those that attacks took into another class; others_fooled, others_share: likewise. Retraining alone
        changes which images fall, so `share` is to be read beside this one: homing is where it is clearly smaller.
      sources: {class number: (count, still)} of the attacked_into. targets: {class number: count}, where the still
        fooled go.
    """

    left_out: str
    n: int
    attacked_into: int
    still: int
    share: float
    low: float
    high: float
    others: int
    others_fooled: int
    others_share: float
    sources: dict[int, tuple[int, int]]
    targets: dict[int, int]


def home(full: Observed, without: Observed, kept: Sequence[int], attack: str) -> Home:
    """Matches the images by id.

    Args:
      full: the model that knows all classes.
      without: the model trained without one, on images of the other classes.
      kept: number in `full` of each class of `without`.
      attack: name of the attack in both.

    Raises:
      ValueError: `kept` does not leave out one class; an image that only one of both has; labels that do not match.
    """
    left = sorted(set(range(full.num_classes)) - set(kept))
    if len(left) != 1 or len(kept) != without.num_classes:
        raise ValueError(
            f"homing leaves out one class; {full.num_classes} and {without.num_classes} classes were given"
        )
    wanted = full.labels != left[0]
    order = np.argsort(without.ids)
    places = np.searchsorted(without.ids[order], full.ids[wanted])
    found = order[np.minimum(places, len(order) - 1)]
    translate = np.append(kept, -1)  # -1, of a model that gave NaN, stays -1
    if len(found) != len(without.ids) or not np.array_equal(without.ids[found], full.ids[wanted]):
        raise ValueError("homing: both models must be attacked on the same images, but for those of the class")
    if not np.array_equal(translate[without.labels[found]], full.labels[wanted]):
        raise ValueError("homing: the same image has another class in the run without the class")
    labels = full.labels[wanted]
    was_right = full.clean_right[wanted]
    fooled_into = full.predictions[attack][wanted]
    into = was_right & (fooled_into == left[0])
    clean, attacked = (translate[one[found]] for one in (without.clean_prediction, without.predictions[attack]))
    wrong = (clean != labels) | (attacked != labels)
    goes = np.where(clean != labels, clean, attacked)  # wrong without any attack: there it is already
    still, rest = into & wrong, was_right & ~into & (fooled_into != labels) & (fooled_into >= 0)
    low, high = wilson(np.array([still.sum()]), np.array([into.sum()]))
    return Home(
        left_out=full.class_names[left[0]],
        n=int(was_right.sum()),
        attacked_into=int(into.sum()),
        still=int(still.sum()),
        share=float(still.sum() / into.sum()) if into.any() else np.nan,
        low=float(low[0]),
        high=float(high[0]),
        others=int(rest.sum()),
        others_fooled=int((rest & wrong).sum()),
        others_share=float((rest & wrong).sum() / rest.sum()) if rest.any() else np.nan,
        sources={
            k: (int((into & (labels == k)).sum()), int((still & (labels == k)).sum()))
            for k in kept
            if (into & (labels == k)).any()
        },
        targets={k: int((goes[still] == k).sum()) for k in kept if (goes[still] == k).any()},
    )


def content(
    homes: Sequence[Home] | Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    attack: str,
    norm: str,
    epsilon: float,
    split: str,
    checkpoint: str | None = None,
    step: int | None = None,
) -> dict[str, Any]:
    """The content of homing's classwise.json.

    Args:
      checkpoint, step: of the model that knows all classes, where it is one of a run.
    """
    model = {"checkpoint": checkpoint, "step": step}
    classes = [_plain(one) if isinstance(one, Home) else dict(one) for one in homes]
    order = {name: k for k, name in enumerate(class_names)}
    classes.sort(key=lambda one: order[one["left_out"]])
    return plain(
        {
            "schema_version": SCHEMA_VERSION,
            "kind": "homing",
            "attack": attack,
            "norm": norm,
            "epsilon": float(epsilon),
            "split": split,
            **{name: value for name, value in model.items() if value is not None},
            "class_names": class_names,
            "classes": classes,
            "verdict": [line(one, class_names) for one in classes],
        }
    )


def line(one: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """One class in words."""
    if not one["attacked_into"]:
        return f"{one['left_out']}: no image was attacked into it"
    targets = sorted(one["targets"], key=lambda target: -target["count"])[:3]
    goes = ", ".join(f"{class_names[target['target']]} {target['count']}" for target in targets)
    others = "" if one["others_share"] is None else f", against {one['others_share']:.0%} of those attacked elsewhere"
    return (
        f"{one['left_out']}: {one['attacked_into']} images were attacked into it; without the class {one['share']:.0%} "
        f"of them (95%: {one['low']:.0%} to {one['high']:.0%}) can still be attacked{others}"
        f"{f'; into {goes}' if goes else ''}"
    )


def _plain(one: Home) -> dict[str, Any]:
    found = plain(one._replace(sources={}, targets={}))
    found["sources"] = [dict(source=int(k), count=c, still=s) for k, (c, s) in one.sources.items()]
    found["targets"] = [dict(target=int(k), count=c) for k, c in one.targets.items()]
    return found
