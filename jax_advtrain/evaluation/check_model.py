"""Is the verdict to be trusted? Signs that attacks fail on a model for other reasons than its robustness."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_advtrain import attacks
from jax_advtrain.attacks import losses
from jax_advtrain.attacks.gradients import Stochastic
from jax_advtrain.attacks.norms import check_norm
from jax_advtrain.attacks.protocol import LogitsFn, check_number
from jax_advtrain.attacks.square import square
from jax_advtrain.data import Dataset
from jax_advtrain.evaluation.attack_dataset import Attacked, as_pytree, attack_dataset, num_outputs
from jax_advtrain.evaluation.masking import RISE_TOLERANCE, SQUARE_TOLERANCE, STEPS_TOLERANCE

FEW_STEPS, MANY_STEPS, QUERIES = 10, 100, 500
NUM_ASKED = 64  # samples on which answers to the same question are compared
FLAT_SHARE = 0.1  # of the right samples may have a loss that does not rise
_ALIKE = 1e-3  # relative difference of logits that is rounding
_ONE = 1e-3  # what the probabilities of a sample may sum to, away from 1


class Finding(NamedTuple):
    """A reason not to trust attacks on a model.

    Attributes:
      name: one of `FINDINGS`; these stay.
      count: how many samples show it.
      message: one line: what was found, and what to do.
    """

    name: str
    count: int
    message: str


def lines(findings: Sequence[Finding]) -> list[str]:
    """Findings as warnings for results.json."""
    return [f"check_model, {finding.name} ({finding.count}): {finding.message}" for finding in findings]


FINDINGS = (
    "probabilities",
    "stochastic",
    "batch_dependent",
    "zero_gradients",
    "nonfinite_gradients",
    "loss_does_not_rise",
    "more_steps_do_not_help",
    "accuracy_rises",
    "square_beats_gradients",
    "large_radius_does_not_win",
)


def check_model(
    logits_fn: LogitsFn,
    images: jax.typing.ArrayLike,
    labels: jax.typing.ArrayLike,
    *,
    norm: str = "linf",
    epsilon: float,
    seed: int = 0,
    batch_size: int = 256,
) -> list[Finding]:
    """What speaks against a robust accuracy measured on this model; empty where nothing does.

    Looked for are outputs that are probabilities, random, or changed by the other samples of the batch; gradients that
    are zero, NaN or infinite; a loss that does not rise along PGD; PGD with 100 steps weaker than with 10; accuracy
    that rises from epsilon / 4 to epsilon / 2 to epsilon; Square (500 queries), which needs no gradients, stronger than
    PGD on the cross entropy and on the logit margin together; and samples that withstand a radius at which any image
    is allowed. A few hundred samples do. Cost: about 1,400 passes a sample on a model where nothing falls.

    Args:
      logits_fn: as in `attack_dataset`, or made by `attacks.stochastic` (then one draw of it is looked at).
      images: in [0, 1], floating point, (N, ...).
      labels: the truth, integers (N,).
      norm: "linf", "l2" or "l1".
      epsilon: the radius of interest, in pixel units of [0, 1].
      seed: of all randomness.
      batch_size: changes no finding.

    Raises:
      ValueError: images outside [0, 1], labels outside the classes, logits of another shape, a bad norm or radius.

    Example:
      >>> for finding in check_model(logits_fn, images, labels, norm="linf", epsilon=8 / 255):
      ...     print(finding.name, finding.count, finding.message)

    References:
      Carlini et al., On evaluating adversarial robustness, arXiv:1902.06705; Croce et al., Evaluating the adversarial
      robustness of adaptive test-time defenses, ICML 2022; the flags of AutoAttack's own code.
    """
    check_norm(norm)
    check_number("epsilon", epsilon, positive=True)
    attacks.validate(images, labels)
    images, labels = np.asarray(images, np.float32), np.asarray(labels, np.int32)
    if not len(images):
        raise ValueError("there are no samples to check the model on")
    found = []
    if isinstance(logits_fn, Stochastic):
        found += _draws(logits_fn, images)
        logits_fn = _one_draw(logits_fn)
    logits_fn = as_pytree(logits_fn)
    found += _outputs(logits_fn, images, batch_size)
    data = _dataset(logits_fn, images, labels)
    ask = partial(attack_dataset, logits_fn=logits_fn, data=data, norm=norm, seed=seed, batch_size=batch_size)
    return found + _attacked(ask, data, norm, epsilon)


def _dataset(logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray) -> Dataset:
    shape = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct((2, *images.shape[1:]), jnp.zeros(()).dtype)).shape
    classes = shape[1] if len(shape) == 2 else 2
    return Dataset("checked", images, labels, np.arange(len(labels)), tuple(map(str, range(classes))), split="check")


# --- The model's answers alone ---


def _draws(model: Stochastic, images: np.ndarray) -> list[Finding]:
    few = jnp.asarray(images[:NUM_ASKED])
    first, second = (model.function(few, jax.random.split(jax.random.key(draw), len(few))) for draw in range(2))
    return _stochastic(_differing(first, second))


def _one_draw(model: Stochastic) -> LogitsFn:
    def answer(function, images):
        key = jnp.zeros_like(images[(slice(None), *(0,) * (images.ndim - 1))], jnp.uint32)
        return function(images, jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), key))

    return jax.tree_util.Partial(answer, model.function)


def _stochastic(count: int) -> list[Finding]:
    message = (
        f"the same images twice gave other logits for {count} samples: a model that answers at random is attacked "
        "through attacks.stochastic and attacks.eot, or made deterministic"
    )
    return [Finding("stochastic", count, message)] if count else []


@jax.jit
def _answers(logits_fn, images):
    return logits_fn(images)


def _outputs(logits_fn: LogitsFn, images: np.ndarray, batch_size: int) -> list[Finding]:
    found = []
    size = min(batch_size, len(images))
    outputs = np.concatenate(
        [
            np.asarray(_answers(logits_fn, images[np.resize(rows, size)]))[: len(rows)]
            for rows in np.split(np.arange(len(images)), range(size, len(images), size))
        ]
    )
    if _are_probabilities(outputs):
        what = "lie in [0, 1]" if outputs.ndim == 1 else "are not negative and sum to 1"
        message = (
            f"the outputs of all {len(outputs)} samples {what}, as probabilities: losses then take a softmax of a "
            "softmax, whose gradients vanish; give the logits"
        )
        found.append(Finding("probabilities", len(outputs), message))
    few = images[: min(NUM_ASKED, size)]
    again = _answers(logits_fn, few)
    changing = _differing(again, _answers(logits_fn, few))
    found += _stochastic(changing)
    if not changing and len(few) > 1:
        # The first half keeps its places and gets other company: itself, in the same shape of batch.
        half = (len(few) + 1) // 2
        company = _answers(logits_fn, np.concatenate([few[:half], few[: len(few) - half]]))
        turned = _answers(logits_fn, few[::-1].copy())[::-1]
        count = max(_differing(again[:half], company[:half]), _differing(again, turned))
        if count:
            message = (
                f"the logits of {count} samples hang on the other samples of the batch (batch statistics?): give the "
                "model in its evaluation mode"
            )
            found.append(Finding("batch_dependent", count, message))
    return found


def _are_probabilities(outputs: np.ndarray) -> bool:
    if not (outputs >= 0).all():
        return False
    return bool((outputs <= 1).all() if outputs.ndim == 1 else (np.abs(outputs.sum(axis=-1) - 1) < _ONE).all())


def _differing(first: jax.Array, second: jax.Array) -> int:
    """Samples whose outputs differ by more than rounding."""
    one, other = (np.asarray(values, np.float32).reshape(len(values), -1) for values in (first, second))
    scale = np.max(np.abs(one), where=np.isfinite(one), initial=0.0)
    return int((~np.isclose(one, other, rtol=0, atol=_ALIKE * scale, equal_nan=True)).any(axis=1).sum())


# --- What attacks do to it ---


def _attacked(ask: Callable[..., Attacked], data: Dataset, norm: str, epsilon: float) -> list[Finding]:
    logits_fn, total = ask.keywords["logits_fn"], len(data)  # type: ignore[attr-defined]
    usual, margin = ("bce", "lmb") if num_outputs(logits_fn, data) == 1 else ("ce", "lm")
    clean = ask(None)
    right = clean.is_right
    if not right.any():
        return []

    def ascent(loss: str, num_steps: int) -> Any:
        return attacks.pgd(norm=norm, epsilon=0.0, num_steps=num_steps, loss=loss)

    found = []
    first = ask(attacks.fgsm(norm=norm, epsilon=0.0, loss=usual), epsilon=epsilon)
    for name, counts, what in (
        ("zero_gradients", first.zero_gradients, "is zero everywhere"),
        ("nonfinite_gradients", first.nonfinite_gradients, "holds NaN or infinity"),
    ):
        count = int((counts > 0).sum())
        message = (
            f"the gradient of the cross entropy at the image {what} for {count} of {total} samples: attacks that climb "
            "it stand still there (rounding inside the model, saturated logits, a division by zero?)"
        )
        found += [Finding(name, count, message)] if count else []

    by_radius = {
        radius: ask(ascent(usual, FEW_STEPS), epsilon=radius, keep_images=True)
        for radius in (epsilon / 4, epsilon / 2, epsilon)
    }
    few = by_radius[epsilon]
    found += _flat(logits_fn, data, few, right, usual, ask.keywords["batch_size"])  # type: ignore[attr-defined]
    many, other = (ask(ascent(loss, MANY_STEPS), epsilon=epsilon) for loss in (usual, margin))

    gain = int(many.is_right.sum()) - int(few.is_right.sum())
    if gain > max(STEPS_TOLERANCE * total, 1):
        message = (
            f"PGD with {MANY_STEPS} steps leaves {gain} of {total} samples more right than with {FEW_STEPS}: its small "
            "steps get stuck, so that the loss is no guide (gradient masking)"
        )
        found.append(Finding("more_steps_do_not_help", gain, message))

    radii = sorted(by_radius)
    rises = [
        (int(by_radius[high].is_right.sum()) - int(by_radius[low].is_right.sum()), low, high)
        for number, low in enumerate(radii)
        for high in radii[number + 1 :]
    ]
    rise, low, high = max(rises)
    if rise > max(RISE_TOLERANCE * total, 1):
        message = (
            f"under PGD {rise} of {total} samples more are right at epsilon {high:.4g} than at {low:.4g}, though the "
            "larger ball holds the smaller: the attack fails there (gradient masking)"
        )
        found.append(Finding("accuracy_rises", rise, message))

    queried = ask(square(norm=norm, epsilon=0.0, num_steps=QUERIES), epsilon=epsilon, active_set=True, clean=clean)
    climbed = right & few.is_right & many.is_right & other.is_right
    beaten = int(climbed.sum()) - int(queried.is_right.sum())
    if beaten > max(SQUARE_TOLERANCE * total, 1):
        message = (
            f"Square, which sees no gradients, leaves {beaten} of {total} samples fewer right than PGD on {usual} and "
            f"{margin} together: the gradients lead astray (gradient masking); report no figure from gradients alone"
        )
        found.append(Finding("square_beats_gradients", beaten, message))

    pixels = math.prod(data.image_shape)
    largest = {"linf": 1.0, "l2": math.sqrt(pixels)}.get(norm, float(pixels))
    anything = attacks.worst_of(ascent(margin, MANY_STEPS), ascent(usual, MANY_STEPS))
    count = int(ask(anything, epsilon=largest, active_set=True, clean=clean).is_right.sum())
    if count:
        message = (
            f"{count} of {total} samples withstand {norm} epsilon {largest:.4g}, at which any image is allowed: the "
            "attack cannot even follow the gradient out of the class (gradient masking)"
        )
        found.append(Finding("large_radius_does_not_win", count, message))
    return found


def _flat(logits_fn, data: Dataset, found: Attacked, right: np.ndarray, loss: str, batch_size: int) -> list[Finding]:
    assert found.images is not None
    before, after = (
        _losses(logits_fn, images, data.labels, loss, batch_size) for images in (data.images, found.images)
    )
    count = int((right & ~(after > before)).sum())
    if count <= FLAT_SHARE * right.sum():
        return []
    message = (
        f"PGD with {FEW_STEPS} steps does not raise the cross entropy of {count} of {int(right.sum())} right samples: "
        "what it climbs is not what it is meant to (gradient masking)"
    )
    return [Finding("loss_does_not_rise", count, message)]


@partial(jax.jit, static_argnames="loss")
def _loss_values(logits_fn, images, labels, loss):
    return losses.as_loss(loss)(logits_fn(images), labels)


def _losses(logits_fn, images: np.ndarray, labels: np.ndarray, loss: str, batch_size: int) -> np.ndarray:
    values = []
    for first in range(0, len(images), batch_size):
        rows = np.arange(first, min(first + batch_size, len(images)))
        whole = np.resize(rows, min(batch_size, len(images)))
        values.append(np.asarray(_loss_values(logits_fn, images[whole], labels[whole], loss))[: len(rows)])
    return np.concatenate(values)
