"""Where an attack first crosses the decision boundary: IMA's placement of its training images, and distances.

The ascent classifies every iterate it visits. Of each sample it keeps two: `inside`, the last right iterate before the
first wrong one, and `outside`, the first wrong one. Bisection of the segment between them finds the boundary.
"""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_advtrain.attacks import norms
from jax_advtrain.attacks.pgd import PGD, AscentState
from jax_advtrain.attacks.protocol import LogitsFn, Problem, check_count
from jax_advtrain.attacks.pytrees import register_dataclass

Placement = Literal["boundary", "outside", "inside", "none"]

# What part of a batch the compacted bisection may hold; the whole batch is the last resort.
COMPACT_SHARES = (1 / 8, 1 / 4, 1 / 2)


class CrossingState(NamedTuple):
    """The ascent, and the two iterates around its first crossing."""

    ascent: AscentState
    inside: Float[Array, "batch *image"]
    outside: Float[Array, "batch *image"]


class BoundaryResult(NamedTuple):
    """What was found of the boundary.

    Attributes:
      images: placed images (see `placement` of `on_boundary`).
      hits: number of wrong ones among the num_steps + 1 iterates; 0 = the ascent never crossed.
      distance: norm of images - clean images, per sample, in pixel units of [0, 1].
      zero_gradients, nonfinite_gradients: as in `AttackResult`.
    """

    images: Float[Array, "batch *image"]
    hits: Int[Array, "batch"]
    distance: Float[Array, "batch"]
    zero_gradients: Int[Array, "batch"]
    nonfinite_gradients: Int[Array, "batch"]


@partial(
    register_dataclass,
    data_fields=["ascent"],
    meta_fields=[
        "refine_steps",
        "placement",
        "inside_is_clean",
        "outside_is_final",
        "refine_unhit",
        "compact",
    ],
)
@dataclasses.dataclass(frozen=True, eq=False)
class OnBoundary:
    """An ascent whose result is placed at the decision boundary; see `on_boundary`."""

    ascent: PGD
    refine_steps: int
    placement: Placement
    inside_is_clean: bool
    outside_is_final: bool
    refine_unhit: bool
    compact: bool

    @property
    def num_steps(self) -> int:
        return self.ascent.num_steps

    def init(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> CrossingState:
        """The state before the first step; arguments as in `PGD.init`."""
        ascent = self.ascent.init(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start)
        return CrossingState(ascent, inside=images, outside=images)

    def step(self, logits_fn: LogitsFn, state: CrossingState) -> CrossingState:
        """Classifies the iterate, keeps it if it is the first crossing or before it, and takes one step."""
        ascent, fooled = self.ascent.advance(logits_fn, state.ascent)
        return CrossingState(ascent, *_record(state, fooled))

    def result(self, logits_fn: LogitsFn, state: CrossingState) -> BoundaryResult:
        """Classifies the final iterate, bisects, and places."""
        ascent = state.ascent
        problem, final = ascent.problem, ascent.iterate
        fooled = self.ascent.is_fooled(logits_fn(final), problem)
        inside, outside = _record(state, fooled)
        hits = ascent.hits + fooled
        if self.inside_is_clean:
            inside = problem.images
        if self.outside_is_final:
            outside = final
        placed = final
        if self.placement != "none":
            refined = self._bisect(logits_fn, problem, inside, outside, hits > 0)
            wanted = jnp.broadcast_to(jnp.any(hits > 0), hits.shape) if self.refine_unhit else hits > 0
            placed = norms.select(wanted, refined, final)
        return BoundaryResult(
            images=placed,
            hits=hits,
            distance=norms.length(placed - problem.images, self.ascent.norm),
            zero_gradients=ascent.zero_gradients,
            nonfinite_gradients=ascent.nonfinite_gradients,
        )

    def _bisect(self, logits_fn: LogitsFn, problem: Problem, inside, outside, is_hit: Bool[Array, "batch"]):
        """The placed images; those of samples that were not hit mean nothing where `compact` is on."""
        batch = inside.shape[0]

        def bisect(labels, targets, inside, outside):
            rows = problem._replace(labels=labels, targets=targets)

            def halve(_, ends):
                inside, outside = ends
                middle = (inside + outside) / 2
                fooled = self.ascent.is_fooled(logits_fn(middle), rows)
                return norms.select(fooled, inside, middle), norms.select(fooled, middle, outside)

            inside, outside = jax.lax.fori_loop(0, self.refine_steps, halve, (inside, outside))
            return {"boundary": (inside + outside) / 2, "outside": outside, "inside": inside}[self.placement]

        everything = (problem.labels, problem.targets, inside, outside)
        capacities = [max(1, int(batch * share)) for share in COMPACT_SHARES] if self.compact else []
        if not capacities:
            return bisect(*everything)
        hit_first = jnp.argsort(~is_hit, stable=True)

        def compacted(capacity):
            def branch(operands):
                rows = hit_first[:capacity]
                return inside.at[rows].set(bisect(*jax.tree.map(lambda values: values[rows], operands)))

            return branch

        branches = [compacted(capacity) for capacity in capacities] + [lambda operands: bisect(*operands)]
        branch = jnp.sum(jnp.sum(is_hit) > jnp.array(capacities))
        return jax.lax.switch(branch, branches, everything)

    def run(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> BoundaryResult:
        """All steps in one loop, then the placement; arguments as in `PGD.init`."""
        state = self.init(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start)
        state = jax.lax.fori_loop(0, self.num_steps, lambda _, state: self.step(logits_fn, state), state)
        return self.result(logits_fn, state)

    def __call__(self, key, logits_fn, images, labels, *, targets=None, epsilon=None, start=None) -> BoundaryResult:
        """The same as `run`."""
        return self.run(key, logits_fn, images, labels, targets=targets, epsilon=epsilon, start=start)

    @property
    def passes(self) -> int:
        """Forward plus backward passes a sample; compaction spares most of the bisection's."""
        return self.ascent.passes + (0 if self.placement == "none" else self.refine_steps)


def _record(state: CrossingState, fooled: Bool[Array, "batch"]) -> tuple[jax.Array, jax.Array]:
    """The two iterates around the first crossing, after the present iterate was classified."""
    iterate = state.ascent.iterate
    uncrossed = state.ascent.hits == 0
    inside = norms.select(uncrossed & ~fooled, iterate, state.inside)
    return inside, norms.select(uncrossed, iterate, state.outside)


def on_boundary(
    ascent: PGD,
    *,
    refine_steps: int = 10,
    placement: Placement = "boundary",
    inside_is_clean: bool = False,
    outside_is_final: bool = False,
    refine_unhit: bool = False,
    compact: bool = False,
) -> OnBoundary:
    """Runs an ascent and places its result where the sample's prediction changes (IMA, arXiv 2005.09147).

    Args:
      ascent: made by pgd, ifgsm or mim; all its steps run for all samples.
      refine_steps: bisections of the segment from inside to outside. Nothing checks that the ends are right and wrong.
      placement: "boundary" returns the last midpoint, never classified; "outside" and "inside" the ends after the last
        bisection; "none" the final iterate, without bisection. (The reference's stop = 1, 2, 3, 0.)
      inside_is_clean: bisect from the clean image instead of the last right iterate (the reference's Xn1_equal_X).
      outside_is_final: bisect to the final iterate instead of the first wrong one, EVEN IF the final one is right
        again (the reference's Xn2_equal_Xn).
      refine_unhit: bisect samples that were never hit too, as soon as one of the batch was (that of a device, its
        padding included, under `shard_map`): a quirk of the reference that makes a sample's result depend on its
        batch. Off, such samples keep their final iterate.
      compact: bisect only the hit samples, gathered into the smallest of a few fixed sizes. Exact where `logits_fn`
        treats samples one by one (no batch statistics).

    Raises:
      ValueError: no such ascent, an unknown placement, refine_steps < 0, compact beside refine_unhit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jax_advtrain.attacks import pgd
      >>> search = on_boundary(pgd(norm="linf", epsilon=0.4, num_steps=8, start="clean"))
      >>> weights = jnp.array([[1.0, -1.0], [0.0, 0.0]])
      >>> x = jnp.array([[0.75, 0.5]])
      >>> found = search(jax.random.key(0), lambda x: (x - 0.5) @ weights, x, jnp.array([0]))
      >>> round(found.distance.item(), 3)
      0.25
    """
    if not isinstance(ascent, PGD):
        raise ValueError(f"on_boundary needs an ascent made by pgd, ifgsm or mim, not {type(ascent).__name__}")
    if placement not in get_args(Placement):
        raise ValueError(f"placement is {placement!r}; the placements are {', '.join(get_args(Placement))}")
    check_count("refine_steps", refine_steps, least=0)
    if compact and refine_unhit:
        raise ValueError("compact refines hit samples only; it excludes refine_unhit")
    return OnBoundary(ascent, refine_steps, placement, inside_is_clean, outside_is_final, refine_unhit, compact)
