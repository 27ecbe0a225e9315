"""Per-sample margins ("per-sample epsilon"): their updates at a sample's visit, one a method, and their equilibrium.

`update` is IMA's, and serves AME and MMA with other numbers; `adapted` is IAAT's. Margins are rows of the training
state's `sample_state`, one a slot of the training set, in pixel units of [0, 1]. A sample is visited once an epoch, so
updating it at its visit equals the reference's update at the epoch's end.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

NUM_BINS = 50
# Quantiles are read off a histogram this fine, so that no device ever sorts or gathers the margins.
_FINE_BINS = 20 * NUM_BINS
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# Equilibrium: the mean change per epoch is below this share of delta, for so many epochs in a row.
EQUILIBRIUM_SHARE = 0.05
EQUILIBRIUM_EPOCHS = 3


def update(
    margin: Float[Array, "batch"],
    right: Bool[Array, "batch"],
    hits: Int[Array, "batch"],
    estimate: Float[Array, "batch"],
    *,
    delta: jax.typing.ArrayLike,
    ceiling: jax.typing.ArrayLike,
) -> Float[Array, "batch"]:
    """One visit (arXiv 2005.09147, algorithm 1).

    A right sample that was never hit expands by `delta`; a right one that was hit moves to `estimate`; a wrong one
    keeps its margin. All are clipped to [0, ceiling]. `delta` and `ceiling` may be per sample.
    """
    moved = jnp.where(hits == 0, margin + delta, estimate)
    return jnp.clip(jnp.where(right, moved, margin), 0, ceiling)


def discounted_expansion(
    margin: Float[Array, "batch"], delta: jax.typing.ArrayLike, steepness: Float[Array, "batch"]
) -> Float[Array, "batch"]:
    """By what AME expands a margin in place of `delta`: delta 0.9^floor(margin / delta) / (1 + steepness).

    `steepness` is the largest absolute pixel gradient of the loss at the attacked image, 0 for samples that do not
    enter the adversarial loss. Nothing else bounds AME's margins.
    """
    # A margin of whole deltas, as sums of them are, must not fall below its number by rounding.
    visits = jnp.floor(margin / delta + 1e-4)
    return jnp.asarray(delta * 0.9**visits / (1 + steepness))


def adapted(
    margin: Float[Array, "batch"],
    survives_larger: Bool[Array, "batch"],
    survives: Bool[Array, "batch"],
    *,
    step: jax.typing.ArrayLike,
    smoothing: jax.typing.ArrayLike,
    floor: jax.typing.ArrayLike,
    ceiling: jax.typing.ArrayLike,
) -> Float[Array, "batch"]:
    """One visit of IAAT (Balaji et al. 2019, arXiv 1910.08051, algorithm 2).

    A sample that survives the attack of radius margin + `step` aims at min(margin + step, ceiling); one that survives
    that of its margin alone stays; one that survives neither aims at max(margin - step, floor). The margin moves the
    part `smoothing` of the way.
    """
    aim = jnp.where(survives, margin, jnp.maximum(margin - step, floor))
    aim = jnp.where(survives_larger, jnp.minimum(margin + step, ceiling), aim)
    return jnp.asarray((1 - smoothing) * margin + smoothing * aim)


def visit_metrics(
    old: Float[Array, "batch"],
    new: Float[Array, "batch"],
    ceiling: jax.typing.ArrayLike,
) -> dict[str, Float[Array, "batch"]]:
    """Per-sample numbers whose sums over an epoch tell whether the margins still grow."""
    change = new - old
    below = new < ceiling
    return {
        "margin_expanding": (change > 0).astype(old.dtype),
        "margin_shrinking": (change < 0).astype(old.dtype),
        "margin_below_ceiling": below.astype(old.dtype),
        "margin_abs_change": jnp.where(below, jnp.abs(change), 0),
        "margin_change": jnp.where(below, change, 0),
    }


class MarginCounts(NamedTuple):
    """Sums over all valid slots: their number, the sum of margins, and a fine histogram over [0, ceiling]."""

    count: Float[Array, ""]
    total: Float[Array, ""]
    histogram: Int[Array, "bins"]


def count(margins: Float[Array, "slots"], valid: Bool[Array, "slots"], ceiling: jax.typing.ArrayLike) -> MarginCounts:
    """Jit-able; on a sharded array each device counts its own slots and only the counts are added up."""
    position = jnp.clip((margins / ceiling * _FINE_BINS).astype(jnp.int32), 0, _FINE_BINS - 1)
    weight = valid.astype(jnp.int32)
    histogram = jnp.zeros(_FINE_BINS, jnp.int32).at[position].add(weight)
    return MarginCounts(jnp.sum(valid).astype(jnp.float32), jnp.sum(jnp.where(valid, margins, 0)), histogram)


def statistics(
    counts: MarginCounts,
    sums: dict[str, float],
    *,
    delta: float,
    ceiling: float,
    earlier: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The margins' part of an epoch's log line.

    Args:
      counts: of the margins after the epoch.
      sums: sums over the epoch of `visit_metrics`, and "count".
      delta, ceiling: the method's numbers.
      earlier: the same part of the earlier epochs' lines.

    Returns:
      mean, quantiles (to 0.1% of the ceiling), at_ceiling, expanding, shrinking, unchanged (shares of the samples),
      abs_change = mean |E_t - E_{t-1}| and growth = mean (E_t - E_{t-1}), both among samples below the ceiling,
      histogram with bin_edges; equilibrium: whether |growth| was under 5% of delta for 3 epochs; settled: the same of
      abs_change. At equilibrium margins swing about the boundary (an expansion by delta, then a hit), which keeps
      abs_change near delta for ever; so `settled` is said beside it and hardly ever comes true (docs/decisions.md).
    """
    fine = np.asarray(counts.histogram)
    number = max(float(counts.count), 1.0)
    below = max(sums["margin_below_ceiling"], 1.0)
    visited = max(sums["count"], 1.0)
    edges = np.linspace(0, ceiling, _FINE_BINS + 1)
    cumulated = np.concatenate([[0], np.cumsum(fine)]) / max(fine.sum(), 1)
    expanding, shrinking = sums["margin_expanding"] / visited, sums["margin_shrinking"] / visited
    line: dict[str, Any] = {
        "mean": float(counts.total) / number,
        "quantiles": {str(q): float(np.interp(q, cumulated, edges)) for q in QUANTILES},
        "at_ceiling": 1 - sums["margin_below_ceiling"] / visited,
        "expanding": expanding,
        "shrinking": shrinking,
        "unchanged": 1 - expanding - shrinking,
        "abs_change": sums["margin_abs_change"] / below,
        "growth": sums["margin_change"] / below,
        "histogram": fine.reshape(NUM_BINS, -1).sum(axis=1).tolist(),
        "bin_edges": np.linspace(0, ceiling, NUM_BINS + 1).tolist(),
    }
    recent = [*earlier, line][-EQUILIBRIUM_EPOCHS:]
    enough = len(recent) == EQUILIBRIUM_EPOCHS
    line["equilibrium"] = enough and all(abs(one["growth"]) < EQUILIBRIUM_SHARE * delta for one in recent)
    line["settled"] = enough and all(one["abs_change"] < EQUILIBRIUM_SHARE * delta for one in recent)
    return line
