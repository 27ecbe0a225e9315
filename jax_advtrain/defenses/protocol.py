"""What a defense is: how one batch becomes a loss.

It has two halves. `craft` attacks, with the weights held fixed, and nothing is differentiated through it. `loss` turns
what was crafted into one loss a sample, and is differentiated with respect to the weights. Kept apart, the crafted
images can be used at other weights too (weight perturbation), and no attack step ever enters the gradient's memory.

The numbers of a method (epsilon, beta, delta, eps_max ...) may be arrays, one a sample, inside `craft` and `loss`: a
method made from another gives each sample its own by `dataclasses.replace(other, epsilon=of_class[batch.labels])`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_advtrain.tasks import Task

Rows = dict[str, jax.Array]


class Batch(NamedTuple):
    """One device's part of a batch. Invalid rows pad the ragged end; nothing of theirs may count.

    Attributes:
      images: in [0, 1].
      labels: the truth.
      keys: one a sample, from (seed, epoch, sample id).
      valid: whether the row holds a sample.
      epoch: the present epoch, from 0.
      unit_start: None, or noise in [-1, 1] from which IMA and AME make their random starts, in place of draws from
        `keys`; of TRADES and MART the Gaussian noise that they start from. Other methods don't look at it.
    """

    images: Float[Array, "batch *image"]
    labels: Int[Array, "batch *dense"]
    keys: Key[Array, "batch"]
    valid: Bool[Array, "batch"]
    epoch: Int[Array, ""]
    unit_start: Float[Array, "batch *image"] | None = None


class Model(NamedTuple):
    """The model as a defense sees it.

    Attributes:
      task: when it is right, and its training loss.
      logits_fn: images -> outputs as attacks see them: weights fixed, evaluation mode.
      batch_logits_fn: the same on the batch's own statistics (`attack_bn = "train"`); moves no averages.
      forward: (batch_stats, images, mask) -> (outputs, new batch_stats), in train mode; `mask` says which samples
        enter the statistics. Differentiable with respect to the weights inside `loss`.
    """

    task: Task
    logits_fn: Callable[[jax.Array], jax.Array]
    batch_logits_fn: Callable[[jax.Array], jax.Array]
    forward: Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


class DefenseLoss(NamedTuple):
    """What `loss` gives.

    Attributes:
      losses: one a sample.
      rows: the new per-sample state.
      batch_stats: the moved BatchNorm averages.
      metrics: numbers a sample whose means over the epoch are logged.
      weights: None, or constants w from 0, one a sample: what is descended is then sum(w losses) / sum(w) over the
        whole batch, wherever its samples lie, in place of the plain mean.
    """

    losses: Float[Array, "batch"]
    rows: Rows
    batch_stats: Any
    metrics: Mapping[str, Float[Array, "batch"]]
    weights: Float[Array, "batch"] | None = None


class HeldOut(NamedTuple):
    """How the model did on held-out samples after an epoch, class by class; plain numbers, alike in every process.

    Attributes:
      epoch: how many epochs are done, from 1.
      clean_count, clean_right: (classes,) samples of each class, and those that are right.
      robust_count, robust_right: the same of the part that was attacked.
      clean_dice, robust_dice: None; of segmentation, where the counts are those of all samples and have one entry,
        (foreground,) means over cases of the Dice of each foreground class.
    """

    epoch: int
    clean_count: np.ndarray
    clean_right: np.ndarray
    robust_count: np.ndarray
    robust_right: np.ndarray
    clean_dice: np.ndarray | None = None
    robust_dice: np.ndarray | None = None

    @property
    def clean_accuracy(self) -> np.ndarray:
        """(classes,) shares; NaN where a class has no sample."""
        return _share(self.clean_right, self.clean_count)

    @property
    def robust_accuracy(self) -> np.ndarray:
        """(classes,) shares; NaN where a class has no attacked sample."""
        return _share(self.robust_right, self.robust_count)


def _share(right: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.where(count > 0, right / np.maximum(count, 1), np.nan)


class Defense(Protocol):
    """A training method: a frozen dataclass of plain values with these functions (`base.Method` has defaults).

    A method may also have `epoch_end(method_state, held_out: HeldOut) -> method_state`, called after each epoch in
    which the monitor ran, before that epoch's checkpoints. It gets and gives numpy arrays, of the same structure and
    shapes. It needs validation data, and says by being there that it does. In a run of several processes each calls
    it with the same numbers, so it may hang on nothing else.

    With `epoch_end` it may also average the weights over epochs: where its `averages_epochs` is True, the averaged
    weights (which evaluation uses) move at the end of such an epoch by the part `epoch_share(method_state, held_out)`,
    from 0 to 1, towards the weights as they are. Both hooks are then told how the weights as they are did.
    """

    def init_rows(self, num_slots: int) -> Rows:
        """Per-sample state, one row a slot of the training set; {} where the method has none."""
        ...

    def init_method_state(self, num_classes: int) -> Any:
        """Replicated state (class weights, class radii); {} where the method has none."""
        ...

    def craft(self, model: Model, batch: Batch, rows: Rows, method_state: Any) -> Any:
        """Attacks the batch; what comes back is handed to `loss`, as constants that lead with the batch axis."""
        ...

    def loss(
        self, model: Model, batch_stats: Any, batch: Batch, crafted: Any, rows: Rows, method_state: Any
    ) -> DefenseLoss:
        """Losses a sample, and everything that follows from the forward passes."""
        ...

    @property
    def margin_settings(self) -> tuple[float, float] | None:
        """(delta, ceiling) where the rows hold IMA-like margins named "margin", else None."""
        ...


def attack_logits_fn(model: Model, attack_bn: str) -> Callable[[jax.Array], jax.Array]:
    """The model as the attack sees it, by the name of the BatchNorm mode: "eval" or "train"."""
    return model.batch_logits_fn if attack_bn == "train" else model.logits_fn
