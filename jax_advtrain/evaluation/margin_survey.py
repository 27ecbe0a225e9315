"""The margin of every sample of any model: at rising radii, the first that reaches the decision boundary."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_advtrain import attacks
from jax_advtrain.data import Dataset, to_unit
from jax_advtrain.devices import AXIS, gathered, make_mesh, spread
from jax_advtrain.evaluation.attack_dataset import LogitsFn, as_pytree, name_seed, num_outputs
from jax_advtrain.tasks import CLASSIFICATION, Task


class MarginSurvey(NamedTuple):
    """Estimated margins.

    Attributes:
      margin: (N,) distance to the decision boundary in pixel units of [0, 1]; 0 where the clean image is wrong; the
        largest radius where nothing was found.
      censored: (N,) True where nothing was found up to the largest radius: the margin is at least that.
      clean_right: (N,) whether the clean image is right; of segmentation also whether its truth has foreground, since
        one without has no boundary (its margin is 0).
    """

    margin: np.ndarray
    censored: np.ndarray
    clean_right: np.ndarray


@partial(jax.jit, static_argnames=("mesh", "task"))
def _survey_batch(mesh, task, searches, logits_fn, images, labels, ids, epsilon, seed):
    def local(searches, logits_fn, images, labels, ids, epsilon, seed):
        images = to_unit(images, jnp.zeros(()).dtype)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed, impl="threefry2x32"), ids)
        search, to_final = searches
        state = search.init(keys, logits_fn, images, labels, epsilon=epsilon)
        state = jax.lax.fori_loop(0, search.num_steps, lambda _, state: search.step(logits_fn, state), state)
        first, final = search.result(logits_fn, state), to_final.result(logits_fn, state)
        # The final iterate lies better than the first wrong one, which random starts carry sideways; but it may be
        # right again.
        crossed = ~task.is_right(logits_fn(final.images), labels)
        distance = jnp.minimum(first.distance, jnp.where(crossed, final.distance, jnp.inf))
        outputs = logits_fn(images)
        return task.is_right(outputs, labels) & task.takes_part(outputs, labels), first.hits, distance

    rows, everywhere = P(AXIS), P()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(everywhere, everywhere, rows, rows, rows, everywhere, everywhere),
        out_specs=rows,
    )(searches, logits_fn, images, labels, ids, epsilon, seed)


def check_radii(radii: Sequence[float]) -> None:
    """Raises ValueError unless the radii of a survey rise from above 0."""
    if not radii or list(radii) != sorted(set(radii)) or not radii[0] > 0 or not np.isfinite(radii[-1]):
        raise ValueError(f"margins.radii are {tuple(radii)}; give rising finite numbers above 0")


def survey_margins(
    logits_fn: LogitsFn,
    data: Dataset,
    radii: Sequence[float],
    mesh: Mesh | None = None,
    *,
    norm: str = "linf",
    num_steps: int = 20,
    loss: str | None = None,
    refine_steps: int = 10,
    seed: int = 0,
    batch_size: int = 256,
    progress: Callable[[str, float], None] = lambda what, share: None,
    task: Task = CLASSIFICATION,
) -> MarginSurvey:
    """Boundary search at each radius in turn, on the samples that no smaller radius has settled.

    The distance is that of a wrong image, so it is an upper bound of the true margin: PGD's first wrong iterate and its
    final one are both bisected towards the clean image, and the nearer result counts.

    Args:
      logits_fn: any function from images in [0, 1], (B, *image), to logits (B, classes) or (B,), that `jax.jit` can
        trace; as a pytree (`jax.tree_util.Partial(apply, params)`) all checkpoints share one compilation.
      data: the samples.
      radii: rising, in pixel units of [0, 1]; all share one compilation.
      mesh: devices along one axis; None = all there are.
      norm: "linf", "l2" or "l1".
      num_steps, loss: of the PGD (alpha 4, random start in the ball); loss None = slm, lmb for one logit, or of
        segmentation what training descends.
      refine_steps: bisections; the distance is exact to radius / 2**refine_steps.
      seed, batch_size: as in `attack_dataset`.
      progress: called with the radius at work and the share of the work done at most.
      task: as in `attack_dataset`.

    Raises:
      ValueError: radii that do not rise from above 0, no samples, logits that do not fit the classes.

    Example:
      >>> found = survey_margins(lambda images: images @ weights, data, [0.1, 0.2, 0.4], norm="l2")
      >>> np.median(found.margin[found.clean_right]), found.censored.mean()
    """
    check_radii(radii)
    outputs = num_outputs(logits_fn, data, task)
    logits_fn, mesh = as_pytree(logits_fn), mesh or make_mesh()
    ascent = attacks.pgd(
        norm=norm,
        epsilon=0.0,
        num_steps=num_steps,
        alpha=4.0,
        loss=loss or (task.loss if task.is_dense else "lmb" if outputs == 1 else "slm"),
        is_right=task.is_right,
        score=task.score,
    )
    searches = tuple(
        attacks.on_boundary(
            ascent,
            refine_steps=refine_steps,
            placement="outside",
            inside_is_clean=True,
            outside_is_final=outside_is_final,
        )
        for outside_is_final in (False, True)
    )
    batch_size = -(-min(batch_size, len(data)) // mesh.size) * mesh.size
    margin = np.full(len(data), radii[-1], np.float32)
    censored = np.ones(len(data), bool)
    clean_right = np.zeros(len(data), bool)
    open_samples = np.arange(len(data))
    for number, radius in enumerate(radii):
        settled = []
        for first in range(0, len(open_samples), batch_size):
            rows = open_samples[first : first + batch_size]
            padded = np.resize(rows, batch_size)
            found = _survey_batch(
                mesh,
                task,
                searches,
                logits_fn,
                spread(mesh, data.images, padded),
                spread(mesh, data.labels, padded),
                spread(mesh, data.ids.astype(np.int32), padded),
                jnp.asarray(radius, jnp.zeros(()).dtype),
                name_seed(seed, "margins"),
            )
            right, hits, distance = (gathered(values)[: len(rows)] for values in found)
            clean_right[rows] = right
            settled_here = ~right | (hits > 0)
            done = rows[settled_here]
            margin[done] = np.where(right, distance, 0)[settled_here]
            censored[done] = False
            settled.append(done)
            progress(f"radius {radius:g}", (number + (first + len(rows)) / len(open_samples)) / len(radii))
        open_samples = np.setdiff1d(open_samples, np.concatenate(settled) if settled else [])
    return MarginSurvey(margin, censored, clean_right)
