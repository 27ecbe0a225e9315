"""A model under a suite of attacks at a list of radii: records, worst cases, per-sample arrays."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jax_advtrain import tasks
from jax_advtrain.attacks.norms import check_norm
from jax_advtrain.attacks.protocol import check_number
from jax_advtrain.data import Dataset
from jax_advtrain.devices import make_mesh
from jax_advtrain.evaluation import segmented
from jax_advtrain.evaluation.active_set import Times
from jax_advtrain.evaluation.attack_dataset import Attacked, LogitsFn, as_pytree, attack_dataset, name_seed, num_outputs
from jax_advtrain.evaluation.records import CLEAN, Outcome, Record, WorstCase, make_record, worst_of, worst_segmentation
from jax_advtrain.evaluation.results import per_sample_arrays
from jax_advtrain.evaluation.suite import Member, check_norms, parse_all


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
      records: clean, every attack at every radius, and the per-sample worst case of each (norm, radius).
      per_sample: arrays for per_sample.npz.
      bad_gradients: {label: (samples with a zero gradient, samples with NaN or infinity)} where there were any.
      per_case: arrays for per_case.npz, of segmentation; else {}.
    """

    records: list[Record]
    per_sample: dict[str, np.ndarray]
    bad_gradients: dict[str, tuple[int, int]]
    per_case: Mapping[str, np.ndarray] = MappingProxyType({})


def evaluate(
    logits_fn: LogitsFn,
    data: Dataset,
    members: Sequence[Member | str],
    epsilons: Mapping[str, Sequence[float]],
    mesh: Mesh | None = None,
    *,
    split: str = "test",
    seed: int = 0,
    batch_size: int = 256,
    active_set: bool | None = None,
    state_folder: str | os.PathLike | None = None,
    progress: Callable[[str, float], None] = lambda what, share: None,
    task: tasks.Task | None = None,
) -> Evaluation:
    """Runs every member at every radius of every norm that it knows, on every sample.

    Args:
      logits_fn: any function from images in [0, 1], (B, *image), to logits (B, classes) or (B,), that `jax.jit` can
        trace. Given as a pytree (`jax.tree_util.Partial(apply, params)`), its weights are traced: all radii and all
        checkpoints share one compilation an attack and norm.
      data: the samples.
      members: attacks as texts ("pgd:num_steps=100:loss=lm"), or made by `suite.parse_all`.
      epsilons: {"linf": [...], "l2": [...]} in pixel units of [0, 1].
      mesh: devices along one axis; None = all there are.
      split: what the records call the samples.
      seed: of all randomness; each attack folds its label into it.
      batch_size: changes no result.
      active_set: as in `attack_dataset`; a record's passes are then those that were run.
      state_folder: where each attack keeps its state, so that an interrupted evaluation goes on; made if needed.
      progress: called with what is running and the share of all samples and attacks done.
      task: None = classification; `segmentation.segmentation(threshold)` where labels are one a pixel: records then
        tell Dice and Hausdorff distance over cases too, and the worst case of a slice is the image with the lowest
        Dice.

    Raises:
      ValueError: dense labels and no task of such; no samples, logits that do not fit the classes, an unknown attack,
        one that knows none of the norms, a negative or NaN radius, state files of another evaluation.

    Example:
      >>> found = evaluate(jax.tree_util.Partial(apply, params), data, ["fgsm", "pgd:loss=lm"], {"linf": [0.1, 0.2]})
      >>> results.write_results("eval", model={}, data=data.fingerprint(), records=found.records)
    """
    logits_fn, mesh = as_pytree(logits_fn), mesh or make_mesh()
    outputs = num_outputs(logits_fn, data, task or tasks.CLASSIFICATION)
    task = task or tasks.for_outputs(outputs)
    members = _read(members, task)
    for norm in epsilons:
        check_norm(norm)
        check_number(f"a radius of {norm}", list(epsilons[norm]))
    check_norms(members, epsilons)
    outcomes: list[Outcome] = []
    bad: dict[str, tuple[int, int]] = {}
    todo = [
        (norm, epsilon, member)
        for norm in epsilons
        for epsilon in epsilons[norm]
        for member in members
        if norm in member.norms
    ]
    total = (len(todo) + 1) * len(data)
    labels = None if data.is_dense else data.labels
    scored: dict[tuple[str, str | None, float], segmented.CaseScores] = {}
    found_clean: Attacked | None = None
    times: Times = {}

    def run(number: int, label: str, norm: str | None, epsilon: float, attack, settings: dict[str, Any]):
        started = time.perf_counter()
        what = label if norm is None else f"{label} {norm} {epsilon:g}"
        found = attack_dataset(
            attack,
            logits_fn,
            data,
            mesh,
            norm=norm or "linf",
            epsilon=epsilon,
            seed=name_seed(seed, label),
            batch_size=batch_size,
            progress=lambda done: progress(what, (number * len(data) + done) / total),
            active_set=active_set,
            clean=found_clean,
            times=times,
            task=task,
            state_file=None if state_folder is None else Path(state_folder) / f"{number}-{what.replace(' ', '-')}.npz",
        )
        zero, nonfinite = int((found.zero_gradients > 0).sum()), int((found.nonfinite_gradients > 0).sum())
        if zero or nonfinite:
            bad[what] = (zero, nonfinite)
        record = make_record(
            label,
            found.is_right,
            labels,
            data.num_classes,
            norm=norm,
            epsilon=epsilon,
            split=split,
            settings=settings,
            passes=_pairs(attack, found),
            seconds=time.perf_counter() - started,
        )
        return _outcome(with_cases(record, found.prediction), found), found

    def with_cases(record: Record, prediction: np.ndarray) -> Record:
        if not data.is_dense:
            return record
        scores = segmented.score_cases(prediction, data)
        scored[(record.attack, record.norm, record.epsilon)] = scores
        return dataclasses.replace(record, segmentation=segmented.summary(scores, data, seed=seed))

    clean, found_clean = run(0, CLEAN, None, 0.0, None, {})
    for number, (norm, epsilon, member) in enumerate(todo, 1):
        outcomes.append(run(number, member.label, norm, epsilon, member.build(norm), member.settings)[0])
    if data.is_dense:
        cases = worst_segmentation(clean, outcomes)
        cases = [case._replace(record=with_cases(case.record, case.prediction)) for case in cases]
        records = [clean.record, *(one.record for one in outcomes), *(case.record for case in cases)]
        arrays = segmented.per_sample_arrays(data, clean, outcomes, cases)
        return Evaluation(records, arrays, bad, segmented.per_case_arrays(data, scored))
    cases: list[WorstCase] = worst_of(clean, outcomes, data.labels, data.num_classes)
    records = [clean.record, *(one.record for one in outcomes), *(case.record for case in cases)]
    return Evaluation(records, per_sample_arrays(data.ids, data.labels, clean, outcomes, cases), bad)


def _read(members: Sequence[Member | str], task: tasks.Task) -> list[Member]:
    """Members as they are, texts read; in the order given."""
    parsed = iter(parse_all([text for text in members if isinstance(text, str)], task=task, where="members"))
    return [next(parsed) if isinstance(member, str) else member for member in members]


def _pairs(attack: Any, found: Attacked) -> float:
    """Forward and backward pairs a sample: of whole batches what the attack says, of the active set what was run."""
    if attack is None:
        return 0.5
    return attack.passes / 2 if found.work is None else found.work.run / len(found.is_right) / 2


def _outcome(record: Record, found: Attacked) -> Outcome:
    return Outcome(record, found.is_right, found.prediction, found.distance, found.score, found.confidence)
