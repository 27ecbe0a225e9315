"""What is known of each sample while an evaluation runs: the facts of attacked images, and how those of parts merge."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.gradients import answers
from jax_advtrain.attacks.stepwise import fold_in
from jax_advtrain.tasks import Task

# The draw of a stochastic model that classifies what an attack found: apart from those of the steps, counted from 0.
VERDICT_DRAW = 2**31 - 5


def facts(task: Task, norm, keep_images, logits_fn, images, labels, keys, attacked, found) -> dict[str, jax.Array]:
    """What is told of attacked images, one entry a sample; `found` is the attack's result, or None where clean."""
    outputs = answers(logits_fn, attacked, keys, VERDICT_DRAW)
    is_right = task.is_right(outputs, labels)
    none = jnp.zeros_like(is_right, jnp.int32)
    return {
        "is_right": is_right,
        "score": task.score(outputs, labels),
        **task.reported(outputs),
        "distance": norms.length(attacked - images, norm),
        "zero_gradients": none if found is None else found.zero_gradients,
        "nonfinite_gradients": none if found is None else found.nonfinite_gradients,
        "winner": none - 1 if found is None else getattr(found, "winner", none),
        **({"images": attacked} if keep_images else {}),
    }


def sample_keys(seed: jax.typing.ArrayLike, ids: jax.Array, path: tuple[jax.typing.ArrayLike, ...]) -> jax.Array:
    """Each sample's key: the seed folded with its id, then with the numbers that lead to a part of an attack."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed, impl="threefry2x32"), ids)
    for number in path:
        keys = fold_in(keys, number)
    return keys


class Work(NamedTuple):
    """Forward and backward passes of samples, in all.

    Attributes:
      run: what the devices ran, with padding and slots whose sample had finished.
      needed: what the samples' own steps and classifications took.
    """

    run: float = 0.0
    needed: float = 0.0

    def plus(self, run: float, needed: float) -> "Work":
        return Work(self.run + run, self.needed + needed)


_COUNTS = ("zero_gradients", "nonfinite_gradients")


class Ledger:
    """The facts of all samples, stage by stage: a stage is one attack that samples go through.

    Attributes:
      passed: (N,) stages that a sample is through with; all of them as soon as its verdict stands.
      facts: name -> (N, ...), of the strongest result so far.
      work: passes so far.
    """

    def __init__(self, num_samples: int, num_stages: int):
        self.num_stages = num_stages
        self.passed = np.zeros(num_samples, np.int32)
        self.known = np.zeros(num_samples, bool)
        self.facts: dict[str, np.ndarray] = {}
        self.work = Work()

    def waiting(self, stage: int) -> np.ndarray:
        """Positions of the samples that a stage is due for."""
        return np.flatnonzero(self.passed == stage)

    @property
    def finished(self) -> int:
        """Samples whose verdict stands."""
        return int((self.passed == self.num_stages).sum())

    def note(
        self, stage: int, positions: np.ndarray, found: Mapping[str, np.ndarray], *, stops: bool, clean: bool = False
    ) -> None:
        """Takes down what a stage did to some samples: a wrong prediction beats a right one, then the larger score; a
        tie keeps the earlier.

        Args:
          stops: samples that are wrong skip the stages to come.
          clean: the stage attacked nothing; its facts give way to any attack's.
        """
        if not self.facts:
            size = len(self.passed)
            self.facts = {name: np.zeros((size, *values.shape[1:]), values.dtype) for name, values in found.items()}
        right, score = self.facts["is_right"][positions], self.facts["score"][positions]
        better = np.where(right == found["is_right"], found["score"] > score, right) | ~self.known[positions]
        for name, values in found.items():
            if name in _COUNTS:
                self.facts[name][positions] += values
            else:
                self.facts[name][positions[better]] = values[better]
        wrong = ~np.asarray(found["is_right"])
        self.passed[positions] = np.where(wrong & stops, self.num_stages, stage + 1)
        self.known[positions] = wrong if clean else True

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, for a file."""
        own = {"passed": self.passed, "known": self.known, "work": np.array(self.work)}
        return {**own, **{f"facts/{k}": v for k, v in self.facts.items()}}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """What `arrays` gave."""
        self.passed, self.known = arrays["passed"], arrays["known"]
        self.work = Work(*arrays["work"].tolist())
        self.facts = {name.removeprefix("facts/"): a for name, a in arrays.items() if name.startswith("facts/")}
