"""A correction of the logits, one number a class, that raises the accuracy of the worst class under attack.

    corrected logits = logits + correction

It is fitted on held-out ATTACKED images and then belongs to the predictor: what is evaluated is `corrected(logits_fn,
correction)` under attacks that are run on it. Relabelling what an attack on the uncorrected model found would say
nothing about an attacker who knows of the correction; `fit_under_attack` attacks each correction in its turn, too.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from jax_advtrain import attacks
from jax_advtrain.attacks.protocol import check_count, check_number
from jax_advtrain.data import Dataset, to_unit
from jax_advtrain.evaluation.attack_dataset import as_pytree, attack_dataset, num_outputs

# How near to the worst a class must be to count beside it: without neighbours the ascent would end at the first tie.
_TEMPERATURE = 0.02
# Of mean accuracy, what the worst class may cost by default.
MOST_LOSS = 0.01


def corrected(logits_fn: Callable[[jax.Array], jax.Array], correction: Any) -> jax.tree_util.Partial:
    """The predictor with the correction, (classes,), inside, as attacks see it; weights and correction are traced."""
    return jax.tree_util.Partial(_corrected, as_pytree(logits_fn), jnp.asarray(correction, jnp.float32))


def _corrected(logits_fn, correction, images):
    logits = logits_fn(images)
    if logits.shape[1:] != correction.shape:
        raise ValueError(f"the correction has shape {correction.shape}, the logits {logits.shape}; need one a class")
    return logits + correction.astype(logits.dtype)


def fit(
    logits: Float[np.ndarray, "batch classes"],
    labels: Int[np.ndarray, "batch"],
    *,
    most_loss: float = MOST_LOSS,
    sweeps: int = 10,
) -> Float[np.ndarray, "classes"]:
    """The correction with the best worst class whose mean accuracy is at most `most_loss` below that of no correction.

    One class after the other gets the best of all its values, the others held fixed: the accuracies change only where a
    sample's class ties with its strongest other class, so all of them are tried. The best is by a soft minimum over the
    classes; of all steps, the one with the best worst class is taken, of equal ones the best mean. No correction at all
    is the first, so that on these samples the worst class never falls.

    Args:
      logits: of attacked images; of several attacks or models of the same classes, one after the other.
      labels: the truth.
      most_loss: of mean accuracy, from 0.
      sweeps: over all classes, at most; it ends before where a sweep changes nothing.

    Returns:
      Numbers to add to the logits, float32, of mean 0 over the classes. No class without a sample is moved by itself.

    Raises:
      ValueError: one logit a sample, labels that do not fit, logits that are not finite, no sample.
    """
    logits, labels = np.asarray(logits, float), np.asarray(labels)
    check_number("most_loss", most_loss)
    check_count("sweeps", sweeps)
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"logits {logits.shape}, labels {labels.shape}; give (N, classes) of two or more, and (N,)")
    if not np.all(np.isfinite(logits)):
        raise ValueError("logits hold NaN or infinity; give finite numbers")
    classes = logits.shape[1]
    counts = np.bincount(labels, minlength=classes)
    if labels.min() < 0 or len(counts) > classes:
        raise ValueError(f"labels range over [{labels.min()}, {labels.max()}]; give 0 to {classes - 1}")
    there = np.flatnonzero(counts)

    def judged(right):
        """(worst, mean, soft minimum) of (..., classes) counts of right samples."""
        accuracy = right[..., there] / counts[there]
        worst = accuracy.min(axis=-1)
        soft = np.mean(np.exp((worst[..., None] - accuracy) / _TEMPERATURE), axis=-1)
        return worst, right.sum(axis=-1) / len(labels), worst - _TEMPERATURE * np.log(soft)

    right = np.bincount(labels[np.argmax(logits, axis=1) == labels], minlength=classes)
    worst, least_mean, score = judged(right)
    correction = np.zeros(classes)
    best = (worst, least_mean), correction
    least_mean = least_mean - most_loss - 1e-12
    for _ in range(sweeps):
        before = score
        for one in there.tolist():
            values, right = _line(logits + correction, labels, one)
            worst, mean, scores = judged(right)
            allowed = np.flatnonzero(mean >= least_mean)
            if not len(allowed):
                continue
            top = allowed[np.lexsort((-np.abs(values[allowed]), mean[allowed], scores[allowed]))[-1]]
            if scores[top] > score:
                correction, score = correction.copy(), scores[top]
                correction[one] += values[top]
                best = max(best, ((worst[top], mean[top]), correction), key=lambda tried: tried[0])
        if score <= before:
            break
    return (best[1] - best[1].mean()).astype(np.float32)


def _line(logits: np.ndarray, labels: np.ndarray, one: int) -> tuple[np.ndarray, np.ndarray]:
    """What can be added to one class's logit, and the counts of right samples of each class that follow.

    Returns:
      (tried,) numbers: between neighbouring ties, and beyond the outermost; (tried, classes) counts.
    """
    others = np.delete(logits, one, axis=1)
    strongest = np.argmax(others, axis=1)
    ties = others[np.arange(len(labels)), strongest] - logits[:, one]
    strongest = np.where(strongest >= one, strongest + 1, strongest)
    order = np.argsort(ties, kind="stable")
    ties, truth, strongest = ties[order], labels[order], strongest[order]
    # Past a sample's tie it is taken for the class `one`.
    change = np.zeros((len(ties) + 1, logits.shape[1]), int)
    change[0] = np.bincount(truth[strongest == truth], minlength=logits.shape[1])
    rows = np.arange(1, len(ties) + 1)
    change[rows, truth] += (truth == one).astype(int) - (strongest == truth)
    right = np.cumsum(change, axis=0)
    values = np.concatenate([ties[:1] - 1, (ties[1:] + ties[:-1]) / 2, ties[-1:] + 1])
    # Between equal ties nothing lies; rounding of the float32 that is added later must not decide a tie either.
    apart = np.concatenate([[True], np.diff(ties) > 1e-5, [True]])
    return values[apart], right[apart]


class Tried(NamedTuple):
    """A correction, and what it reached where it was itself attacked.

    Attributes:
      worst, mean: accuracy under attack of the worst class, and of all held-out samples.
      correction: (classes,), added to the logits.
    """

    worst: float
    mean: float
    correction: Float[np.ndarray, "classes"]


def fit_under_attack(
    logits_fn: Callable[[jax.Array], jax.Array],
    data: Dataset,
    attack: attacks.Attack,
    mesh: Mesh | None = None,
    *,
    norm: str = "linf",
    epsilon: float,
    rounds: int = 3,
    seed: int = 0,
    batch_size: int = 256,
    **settings: Any,
) -> Float[np.ndarray, "classes"]:
    """A correction that holds while it is attacked: the `best_of` `try_under_attack`, whose arguments these are."""
    tried = try_under_attack(
        logits_fn, data, attack, mesh,
        norm=norm, epsilon=epsilon, rounds=rounds, seed=seed, batch_size=batch_size, **settings,
    )  # fmt: skip
    return best_of(tried, settings.get("most_loss", MOST_LOSS)).correction


def best_of(tried: Sequence[Tried], most_loss: float) -> Tried:
    """The best worst class (then mean) among those that lose at most `most_loss` of the mean of the first."""
    allowed = [one for one in tried if one.mean >= tried[0].mean - most_loss - 1e-12]
    return max(allowed, key=lambda one: one[:2])


def try_under_attack(
    logits_fn: Callable[[jax.Array], jax.Array],
    data: Dataset,
    attack: attacks.Attack,
    mesh: Mesh | None = None,
    *,
    norm: str = "linf",
    epsilon: float,
    rounds: int = 3,
    seed: int = 0,
    batch_size: int = 256,
    **settings: Any,
) -> list[Tried]:
    """Attack, fit, attack what is corrected, fit on all found so far, and so on.

    Args:
      data: held-out images, of which the predictor is not evaluated afterwards.
      attack, mesh, norm, epsilon, seed, batch_size: as in `attack_dataset`.
      rounds: fits, from 1.
      settings: of `fit`.

    Returns:
      No correction first, then that of each round.

    Raises:
      ValueError: one logit a sample; what `fit` refuses.
    """
    check_count("rounds", rounds)
    count = num_outputs(logits_fn, data)
    if count == 1:
        raise ValueError("the model gives one logit a sample; a correction a class needs one logit a class")
    outputs = jax.jit(lambda logits_fn, images: logits_fn(images))
    logits_fn, kept = as_pytree(logits_fn), []
    correction, tried = np.zeros(count, np.float32), []
    for number in range(rounds + 1):
        found = attack_dataset(
            attack,
            corrected(logits_fn, correction),
            data,
            mesh,
            norm=norm,
            epsilon=epsilon,
            seed=seed,
            batch_size=batch_size,
            keep_images=True,
        )
        by_class = [found.is_right[data.labels == one].mean() for one in np.unique(data.labels)]
        tried.append(Tried(float(min(by_class)), float(found.is_right.mean()), correction))
        if number == rounds:
            break
        assert found.images is not None
        for first in range(0, len(data), batch_size):
            images = to_unit(found.images[first : first + batch_size], jnp.zeros(()).dtype)
            kept.append(np.asarray(outputs(logits_fn, images)))
        correction = fit(np.concatenate(kept), np.tile(data.labels, number + 1), **settings)
    return tried
