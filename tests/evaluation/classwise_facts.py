"""A made-up diagnosis of any number of classes, for tests of its file and figures."""

from typing import Any

import numpy as np

from jax_advtrain.evaluation import classwise
from jax_advtrain.evaluation.classwise import confidence, epochs, facts, flow, gains, head, superclasses, verdict
from jax_advtrain.evaluation.records import CLEAN, WORST_OF


def made_up(
    class_names: tuple[str, ...], samples_of_each: int = 12, *, empty: tuple[int, ...] = (), with_all: bool = True
) -> tuple[dict[str, Any], np.ndarray]:
    """(content of classwise.json, flow (K, K)); classes in `empty` have no samples; `with_all`: all parts."""
    rng = np.random.default_rng(0)
    k = len(class_names)
    labels = np.repeat(np.setdiff1d(np.arange(k), empty), samples_of_each)
    strength = np.clip(rng.normal(0.55, 0.2, k), 0.02, 0.97)[labels]
    chance, other = rng.random(len(labels)), (labels + rng.integers(1, k, len(labels))) % k
    predictions = {
        name: np.where(chance < strength * share, labels, other)
        for name, share in (("fgsm-ce", 1.0), ("pgd-20-ce", 0.8), ("apgd-100-dlr", 0.75))
    }
    clean = np.where(chance < strength + 0.3, labels, other)
    seen = classwise.observed(labels, clean, predictions, class_names)
    whole = {CLEAN: clean, **predictions, WORST_OF: np.where(seen.worst(), labels, other)}
    tables = {name: classwise.class_table(labels, one == labels, k) for name, one in whole.items()}
    right = np.stack([one == labels for one in whole.values()])
    drawn = classwise.resampled_accuracies(labels, right, k, resamples=10)
    groups = superclasses.known(class_names)
    counts = {name: flow.confusion(labels, one, k) for name, one in whole.items()}
    logged = [
        {"epoch": e, "validation": {"per_class": {
            what: {"n": [20] * k, "correct": rng.binomial(20, 1 - base**e, k).tolist()}
            for what, base in (("clean", 0.5), ("robust", 0.8))
        }}}
        for e in range(1, 6)
    ]  # fmt: skip
    swept = {t: (chance < strength * share, rng.normal(size=len(labels))) for t, share in ((1.0, 0.9), (0.1, 0.8))}
    content: dict[str, Any] = {
        **facts.head(
            {"name": "made_up"}, {"name": "made_up", "count": len(labels)}, class_names, "test", "linf", 0.1,
            {name: {"name": name} for name in predictions}, 0, 10,
        ),
        "accuracy": [facts.accuracy(name, table, 10, 0) for name, table in tables.items()],
        "gap": facts.plain(tables[CLEAN].accuracy - tables[WORST_OF].accuracy),
        "superclasses": facts.superclasses(groups),
        "flow": [facts.flow(name, one, groups) for name, one in counts.items()],
        "consistency": facts.agreement(
            classwise.agreement(list(tables), np.stack([table.accuracy for table in tables.values()]), drawn)
        ),
        "gains": [facts.gain(one) for one in gains.chain_gains(seen.right(), labels, k, resamples=20)],
        "confidence": [
            facts.confidence("pgd-20-ce", classwise.class_confidence(labels, rng.dirichlet(np.ones(k), len(labels)), k))
        ],
        "temperature": facts.temperature(confidence.temperature_table(labels, swept, k) if with_all else None, 20),
        "weight_norm": facts.weight_norm(
            head.norm_relation(rng.normal(size=(8, k)), tables[WORST_OF].accuracy) if with_all else None, head.NO_HEAD
        ),
        "epochs": facts.epochs(epochs.from_log(logged, resamples=50) if with_all else None, epochs.NO_LOG),
    }  # fmt: skip
    return {**content, "verdict": verdict.lines(content)}, classwise.row_shares(counts[WORST_OF])
