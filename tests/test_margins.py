"""The margins: their update at a visit, what is counted of them, and when they are at equilibrium."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jax_advtrain import margins

CEILING, DELTA = 0.3, 0.03


def once_per_epoch(margin, flag1, flag2, margin_new, delta, ceiling):
    """The reference's IMA_update_margin, after its README: for the whole set, at the epoch's end."""
    result = margin.copy()
    for i in range(len(margin)):
        if flag2[i] == 1 and flag1[i] == 1:
            result[i] = margin[i] + delta
        elif flag2[i] == 1:
            result[i] = margin_new[i]
    return np.clip(result, 0, ceiling)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_update_is_the_reference(reference_dir, dtype):
    vectors = np.load(reference_dir / "update_margin.npz")
    with jax.enable_x64(dtype is np.float64):
        ours = margins.update(
            jnp.asarray(vectors["margin"], dtype),
            jnp.asarray(vectors["flag2"] == 1),
            jnp.asarray(np.where(vectors["flag1"] == 1, 0, 21)),
            jnp.asarray(vectors["margin_new"], dtype),
            delta=float(vectors["delta"]),
            ceiling=float(vectors["max_margin"]),
        )
        assert ours.dtype == dtype
    theirs = vectors["result_f32" if dtype is np.float32 else "result_f64"]
    atol = 1e-6 if dtype is np.float32 else 1e-12
    print(f"update_margin {np.dtype(dtype).name}: largest {np.abs(np.asarray(ours) - theirs).max():.2g}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
    written = once_per_epoch(*(vectors[k].astype(dtype) for k in ("margin", "flag1", "flag2", "margin_new")), 0.3, 3.0)
    np.testing.assert_allclose(written, theirs, rtol=0, atol=atol)


NUM_SAMPLES, BATCH = 24, 6
per_sample = {"shape": NUM_SAMPLES}
unit = st.floats(0, 0.5, width=32, allow_subnormal=False)  # XLA flushes subnormals to zero


@settings(deadline=None, max_examples=50)
@given(
    margin=arrays.arrays(np.float32, elements=unit, **per_sample),
    estimate=arrays.arrays(np.float32, elements=unit, **per_sample),
    right=arrays.arrays(bool, **per_sample),
    hits=arrays.arrays(np.int32, elements=st.sampled_from([0, 0, 1, 21]), **per_sample),
    order=st.permutations(range(NUM_SAMPLES)),
)
def test_updates_at_the_visits_equal_one_at_the_end_of_the_epoch(margin, estimate, right, hits, order):
    rows = margin.copy()
    for visit in np.array(order).reshape(-1, BATCH):
        rows[visit] = margins.update(
            rows[visit], right[visit], hits[visit], estimate[visit], delta=DELTA, ceiling=CEILING
        )
    at_the_end = once_per_epoch(margin, hits == 0, right, estimate, np.float32(DELTA), np.float32(CEILING))
    np.testing.assert_array_equal(rows, at_the_end)


def test_delta_and_ceiling_may_be_per_sample():
    margin, every = jnp.array([0.1, 0.1, 0.1]), jnp.ones(3, bool)
    moved = margins.update(
        margin,
        every,
        jnp.zeros(3, jnp.int32),
        margin,
        delta=jnp.array([0.1, 0.2, 0.3]),
        ceiling=jnp.array([1.0, 0.25, 1.0]),
    )
    np.testing.assert_allclose(moved, [0.2, 0.25, 0.4], rtol=1e-6)


def test_visit_metrics_leave_the_ceiling_out_of_the_change():
    old, new = jnp.array([0.1, 0.2, 0.2, 0.29, 0.3]), jnp.array([0.13, 0.16, 0.2, 0.3, 0.3])
    found = margins.visit_metrics(old, new, CEILING)
    np.testing.assert_array_equal(found["margin_expanding"], [1, 0, 0, 1, 0])
    np.testing.assert_array_equal(found["margin_shrinking"], [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(found["margin_below_ceiling"], [1, 1, 1, 0, 0])
    np.testing.assert_allclose(found["margin_abs_change"], [0.03, 0.04, 0, 0, 0], atol=1e-7)
    np.testing.assert_allclose(found["margin_change"], [0.03, -0.04, 0, 0, 0], atol=1e-7)


def line_of(old, new, valid=None, earlier=()):
    """The epoch's line of margins that went from `old` to `new`."""
    old, new = jnp.asarray(old, jnp.float32), jnp.asarray(new, jnp.float32)
    valid = jnp.ones(len(new), bool) if valid is None else jnp.asarray(valid)
    seen = margins.visit_metrics(old, new, CEILING)
    sums = {name: float(jnp.sum(jnp.where(valid, values, 0))) for name, values in seen.items()}
    sums["count"] = float(jnp.sum(valid))
    counts = margins.count(new, valid, CEILING)
    return margins.statistics(counts, sums, delta=DELTA, ceiling=CEILING, earlier=earlier)


def test_statistics_of_a_few_margins():
    line = line_of([0.03, 0.06, 0.1, 0.3], [0.06, 0.04, 0.1, 0.3])
    assert line["mean"] == pytest.approx(0.125)
    assert line["at_ceiling"] == 0.25
    assert (line["expanding"], line["shrinking"], line["unchanged"]) == (0.25, 0.25, 0.5)
    assert line["abs_change"] == pytest.approx(0.05 / 3)  # of the three below the ceiling
    assert line["growth"] == pytest.approx(0.01 / 3)
    assert sum(line["histogram"]) == 4 and line["histogram"][-1] == 1
    assert len(line["bin_edges"]) == len(line["histogram"]) + 1 and line["bin_edges"][-1] == CEILING


def test_every_margin_lies_in_its_bin():
    values = np.linspace(0, CEILING, 997, dtype=np.float32)
    line = line_of(values, values)
    expected, _ = np.histogram(values, bins=line["bin_edges"])
    # A value within float32 rounding of an edge may fall to either side.
    assert np.abs(np.cumsum(expected) - np.cumsum(line["histogram"])).max() <= 1
    assert sum(line["histogram"]) == 997


@settings(deadline=None, max_examples=25)
@given(
    values=arrays.arrays(np.float32, 64, elements=st.floats(0, 0.30000001192092896, width=32, allow_subnormal=False)),
    number=st.integers(1, 64),
)
def test_quantiles_are_within_one_part_in_a_thousand_of_the_ceiling(values, number):
    line = line_of(values, values, valid=np.arange(64) < number)
    values = values[:number]
    for name, quantile in line["quantiles"].items():
        # Between two samples every number is a quantile, so the two around it are the bounds.
        low, high = (np.quantile(values, float(name), method=m) for m in ("inverted_cdf", "higher"))
        assert low - CEILING / 1000 - 1e-6 <= quantile <= high + CEILING / 1000 + 1e-6, name


def test_padding_slots_count_nowhere():
    alone = line_of([0.1, 0.2], [0.13, 0.15])
    padded = line_of([0.1, 0.03, 0.2, 0.3], [0.13, 0.03, 0.15, 0.3], valid=[True, False, True, False])
    assert padded == alone


def epochs(changes, start=0.1, num_samples=8):
    """Lines of epochs in which every margin moves by so much."""
    lines, margin = [], np.full(num_samples, start)
    for change in changes:
        lines.append(line_of(margin, margin + change, earlier=lines))
        margin = margin + change
    return lines


def test_equilibrium_needs_three_quiet_epochs_in_a_row():
    quiet, loud = 0.04 * DELTA, 0.06 * DELTA
    found = [line["equilibrium"] for line in epochs([DELTA, quiet, quiet, -quiet, quiet, loud, quiet, -quiet, quiet])]
    assert found == [False, False, False, True, True, False, False, False, True]


def test_margins_that_swing_about_the_boundary_are_at_equilibrium_and_not_settled():
    lines, old = [], np.linspace(0.1, 0.2, 8)
    sign = np.tile([1, -1], 4)
    for _ in range(4):
        lines.append(line_of(old, old + sign * DELTA / 2, earlier=lines))
        old, sign = old + sign * DELTA / 2, -sign
    assert [line["equilibrium"] for line in lines] == [False, False, True, True]
    assert not any(line["settled"] for line in lines)
    assert epochs([0.0] * 3)[-1]["settled"]


def test_margins_that_all_reached_the_ceiling_are_at_rest():
    line = line_of([CEILING] * 4, [CEILING] * 4)
    assert (line["at_ceiling"], line["abs_change"], line["growth"]) == (1.0, 0.0, 0.0)


def test_iaat_moves_part_of_the_way_to_what_was_survived():
    """By hand: step 0.1, smoothing 0.25, from 0.05 to 0.4."""
    margin = jnp.array([0.2, 0.2, 0.2, 0.35, 0.1, 0.2])
    larger = jnp.array([True, False, False, True, False, True])
    own = jnp.array([True, True, False, True, False, False])  # the last survives the larger attack alone
    moved = margins.adapted(margin, larger, own, step=0.1, smoothing=0.25, floor=0.05, ceiling=0.4)
    np.testing.assert_allclose(moved, [0.225, 0.2, 0.175, 0.3625, 0.0875, 0.225], rtol=1e-6)


def test_ame_expands_less_the_larger_the_margin_and_the_steeper_the_loss():
    """By hand: delta 0.1."""
    margin = jnp.array([0.0, 0.05, 0.1, 0.25, 0.3, 0.1])
    steepness = jnp.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    found = margins.discounted_expansion(margin, 0.1, steepness)
    np.testing.assert_allclose(found, [0.1, 0.1, 0.09, 0.081, 0.0729, 0.045], rtol=1e-5)
    # A margin that is a sum of deltas counts as so many, however it was rounded.
    summed = jnp.cumsum(jnp.full(20, 0.03))
    whole = margins.discounted_expansion(summed, 0.03, jnp.zeros(20)) / 0.03
    np.testing.assert_allclose(whole, 0.9 ** np.arange(1, 21), rtol=1e-4)
