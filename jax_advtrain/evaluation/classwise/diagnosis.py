"""The whole diagnosis of one model: attacks it and puts the parts together; see docs/classwise.md for each part."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jax_advtrain import attacks as attack_room
from jax_advtrain import tasks
from jax_advtrain.attacks.norms import check_norm
from jax_advtrain.attacks.protocol import check_number
from jax_advtrain.data import Dataset
from jax_advtrain.devices import make_mesh
from jax_advtrain.evaluation.attack_dataset import LogitsFn, as_pytree, name_seed, num_outputs
from jax_advtrain.evaluation.classwise import facts, flow, gains, verdict
from jax_advtrain.evaluation.classwise.attacking import attacked_answers
from jax_advtrain.evaluation.classwise.confidence import class_confidence, temperature_table
from jax_advtrain.evaluation.classwise.consistency import agreement
from jax_advtrain.evaluation.classwise.epochs import NO_LOG, Epochs
from jax_advtrain.evaluation.classwise.head import NO_HEAD, norm_relation
from jax_advtrain.evaluation.classwise.observations import Observed, observed, worst_case
from jax_advtrain.evaluation.classwise.per_class import ClassTable, class_table
from jax_advtrain.evaluation.classwise.resampling import resampled_accuracies
from jax_advtrain.evaluation.classwise.superclasses import Superclasses, known
from jax_advtrain.evaluation.records import CLEAN, WORST_OF
from jax_advtrain.evaluation.suite import Member, check_norms, parse_all


class Diagnosis(NamedTuple):
    """What was found.

    Attributes:
      facts: the content of classwise.json, plain values (NaN is None).
      arrays: what is too large for it: "id", "label", "clean_prediction", "prediction/<attack>" (N,), and
        "distribution/<attack>" (K, K), the mean predicted distribution of each class.
      observed: predictions sample by sample.
    """

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]
    observed: Observed


def diagnose(
    logits_fn: LogitsFn,
    data: Dataset,
    attacks: Sequence[str | Member] | Mapping[str, attack_room.Attack],
    *,
    norm: str = "linf",
    epsilon: float,
    mesh: Mesh | None = None,
    temperatures: Sequence[float] = (),
    temperature_steps: int = 20,
    kernel: np.ndarray | None = None,
    why_no_kernel: str = NO_HEAD,
    epochs: Epochs | None = None,
    superclasses: Superclasses | None = None,
    model: Mapping[str, Any] | None = None,
    split: str = "test",
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 256,
    state_folder: str | os.PathLike | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Diagnosis:
    """Which classes are weak, where their images go, how sure that is; for anybody's model.

    Args:
      logits_fn: any function from images in [0, 1], (B, *image), to logits (B, classes) or (B,), that `jax.jit` can
        trace; see `attack_dataset.as_pytree`.
      data: the samples.
      attacks: from weak to strong: texts ("pgd:num_steps=100:temperature=0.2"), or {name: attack}.
      norm, epsilon: of all attacks, in pixel units of [0, 1]; attacks that have a radius of their own get this one.
      temperatures: of the sweep of PGD with cross entropy and `temperature_steps` steps; none: no sweep. 1 is added.
      kernel: the last layer's weights (features, classes) (`head.find_kernel`); None: `why_no_kernel` is told.
      epochs: of `epochs.from_log`.
      superclasses: None: those known for the names of the classes.
      model: plain values that say which model this is.
      split: what the samples are called.
      resamples: of every bootstrap. seed: of all randomness. batch_size: changes no result.
      state_folder: where interrupted attacks go on.
      progress: called with what is running and the share of all attacks done.

    Raises:
      ValueError: no samples, no attacks, logits that do not fit, an unknown attack or norm, a bad radius.

    Example:
      >>> found = diagnose(logits_fn, data, ["fgsm", "pgd:num_steps=20"], norm="linf", epsilon=8 / 255)
      >>> print("\\n".join(found.facts["verdict"]))
    """
    logits_fn, mesh = as_pytree(logits_fn), mesh or make_mesh()
    outputs = num_outputs(logits_fn, data)
    built, settings = _built(attacks, norm, epsilon, tasks.for_outputs(outputs))
    names = (*data.class_names, *(f"output {k}" for k in range(data.num_classes, outputs)))
    sweep = sorted({*map(float, temperatures), 1.0}, reverse=True) if temperatures else []
    check_number("temperatures", sweep, positive=True)
    total, done = (1 + len(built) + len(sweep)) * len(data), 0

    believed = {}

    def run(what: str, attack: attack_room.Attack | None, seed_name: str, *, believe: bool = True):
        nonlocal done
        found = attacked_answers(
            attack,
            logits_fn,
            data,
            mesh,
            norm=norm,
            epsilon=0.0 if attack is None else epsilon,
            seed=name_seed(seed, seed_name),
            batch_size=batch_size,
            believe=believe,
            state_path=None if state_folder is None or attack is None else Path(state_folder) / what,
            progress=lambda count: progress(what, (done + count) / total),
        )
        done += len(data)
        if found.probabilities is not None:  # summed at once: of many classes they are large
            believed[what] = class_confidence(data.labels, found.probabilities, len(names))
        return found._replace(probabilities=None)

    clean = run(CLEAN, None, CLEAN)
    found = {name: run(name, attack, name) for name, attack in built.items()}
    seen = observed(
        data.labels, clean.prediction, {name: one.prediction for name, one in found.items()}, names, ids=data.ids
    )
    loss = "bce" if outputs == 1 else "ce"
    ascents = {
        value: attack_room.pgd(
            norm=norm,
            epsilon=0.0,
            num_steps=temperature_steps,
            loss=attack_room.with_temperature(loss, value),
        )
        for value in sweep
    }
    swept = {
        value: run(f"temperature-{value:g}", attack, "temperature sweep", believe=False)
        for value, attack in ascents.items()
    }
    whole = {
        **seen.predictions,
        WORST_OF: worst_case(seen, {name: one.score for name, one in found.items()}, norm, epsilon),
    }
    tables = {
        CLEAN: class_table(data.labels, seen.clean_right, len(names)),
        **{name: class_table(data.labels, one == data.labels, len(names)) for name, one in whole.items()},
    }
    groups = superclasses or known(data.class_names)
    if groups is not None and len(groups.groups) < len(names):
        groups = None  # a model of more outputs than the set has classes
    content = {
        **facts.head(model or {}, data.fingerprint(), names, split, norm, epsilon, settings, seed, resamples),
        "accuracy": [facts.accuracy(name, table, resamples, seed) for name, table in tables.items()],
        "gap": facts.plain(tables[CLEAN].accuracy - tables[WORST_OF].accuracy),
        "superclasses": facts.superclasses(groups),
        "flow": [facts.flow(name, _counts(seen, one), groups) for name, one in {**_clean(seen), **whole}.items()],
        "consistency": facts.agreement(_agreement(seen, tables, resamples, seed)),
        "gains": [
            facts.gain(one)
            for one in gains.chain_gains(seen.right(), data.labels, len(names), resamples=resamples, seed=seed)
        ],
        "confidence": [facts.confidence(name, one) for name, one in believed.items()],
        "temperature": facts.temperature(_sweep(data.labels, swept, len(names)), temperature_steps),
        "weight_norm": facts.weight_norm(
            None if kernel is None else norm_relation(kernel, tables[WORST_OF].accuracy), why_no_kernel
        ),
        "epochs": facts.epochs(epochs, NO_LOG),
    }
    content["verdict"] = verdict.lines(content)
    return Diagnosis(content, _arrays(seen, whole, believed), seen)


def _built(attacks, norm: str, epsilon: float, task: tasks.Task):
    """({name: attack}, {name: plain settings})."""
    check_norm(norm)
    check_number("epsilon", epsilon)
    if not attacks:
        raise ValueError("the class-wise diagnosis needs an attack, from weak to strong; there is none")
    if isinstance(attacks, Mapping):
        return dict(attacks), {name: {"name": name} for name in attacks}
    texts = [one for one in attacks if isinstance(one, str)]
    parsed = iter(parse_all(texts, task=task, where="attacks"))
    members = [next(parsed) if isinstance(one, str) else one for one in attacks]
    check_norms(members, {norm: (epsilon,)}, where="attacks")
    return {one.label: one.build(norm) for one in members}, {one.label: one.settings for one in members}


def _clean(seen: Observed) -> dict[str, np.ndarray]:
    return {CLEAN: seen.clean_prediction}


def _counts(seen: Observed, prediction: np.ndarray) -> np.ndarray:
    return flow.confusion(seen.labels, prediction, seen.num_classes)


def _agreement(seen: Observed, tables: Mapping[str, ClassTable], resamples: int, seed: int):
    """Clean, each attack and the worst case."""
    right = np.stack([seen.clean_right, *seen.right().values(), seen.worst()])
    drawn = resampled_accuracies(seen.labels, right, seen.num_classes, resamples=resamples, seed=seed)
    return agreement(list(tables), np.stack([table.accuracy for table in tables.values()]), drawn)


def _sweep(labels: np.ndarray, swept, num_classes: int):
    found = {value: (one.prediction == labels, one.score) for value, one in swept.items()}
    return temperature_table(labels, found, num_classes) if found else None


def _arrays(seen: Observed, whole: Mapping[str, np.ndarray], believed) -> dict[str, np.ndarray]:
    return {
        "id": seen.ids,
        "label": seen.labels,
        "clean_prediction": seen.clean_prediction,
        **{f"prediction/{name}": prediction for name, prediction in whole.items()},
        **{f"distribution/{name}": one.distribution.astype(np.float32) for name, one in believed.items()},
    }
