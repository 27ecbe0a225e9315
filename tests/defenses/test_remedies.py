"""Remedies for the most vulnerable class: update rules by hand and by a second writing, and how they meet a method."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import linear_model as plain
import numpy as np
import pytest
from linear_model import COUNT, LABELS

from jax_advtrain import defenses
from jax_advtrain.defenses import CFA, DEFENSES, FRL, IMA, Gairat, HeldOut, Madry, Reweight, Standard, Trades

NAN = float("nan")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def held_out(robust, clean=None, epoch=20, size=100) -> HeldOut:
    """Of classes of `size` held-out samples each; NaN = a class of none."""

    def counts(shares):
        shares = np.asarray(shares, float)
        there = ~np.isnan(shares)
        return np.where(there, size, 0), np.where(there, np.round(size * np.nan_to_num(shares)), 0).astype(int)

    clean = np.where(np.isnan(robust), NAN, 1.0) if clean is None else clean
    return HeldOut(epoch, *counts(clean), *counts(robust))


def after(remedy, *told):
    """The remedy's own numbers after those epochs, as numpy."""
    state = jax.tree.map(np.array, remedy.init_method_state(len(told[0].robust_count)))
    for one in told:
        state = remedy.epoch_end(state, one)
        for values in jax.tree.leaves(state):
            assert np.all(np.isfinite(values))
    return state


def test_class_weights_follow_the_smoothed_error():
    """Errors 0.2, 0.4, 0.6: halfway between 1 and 0.5, 1, 1.5. Then 0.6, 0.4, 0.2: by a quarter the same way back."""
    remedy = Reweight(Standard(), smoothing=0.75, strength=0.5)
    first = held_out([0.8, 0.6, 0.4])
    np.testing.assert_allclose(after(remedy, first)["remedy"]["weight"], [0.75, 1, 1.25])
    state = after(remedy, first, held_out([0.4, 0.6, 0.8]))["remedy"]
    np.testing.assert_allclose(state["error"], [0.3, 0.4, 0.5])
    np.testing.assert_allclose(state["weight"], [0.875, 1, 1.125])
    np.testing.assert_allclose(after(remedy, held_out([1, 1, 1]))["remedy"]["weight"], 1)


def test_a_class_without_held_out_samples_weighs_one():
    remedy = Reweight(Standard(), smoothing=0.5, strength=1.0)
    state = after(remedy, held_out([0.9, NAN, 0.7]))["remedy"]
    np.testing.assert_allclose(state["weight"], [0.5, 1, 1.5])
    # Seen once, its error stays; and its first counts whole, as theirs did.
    state = after(remedy, held_out([0.9, NAN, 0.7]), held_out([NAN, 0.8, 0.7]))["remedy"]
    np.testing.assert_allclose(state["weight"], [0.5, 1, 1.5])
    np.testing.assert_allclose(after(remedy, held_out([NAN, NAN, NAN]))["remedy"]["weight"], 1)


def test_radii_and_betas_of_cfa_follow_robust_accuracy():
    remedy = CFA(Trades(), lambda_1=0.3, lambda_2=0.5, begin=10)
    early, late = (held_out([0.8, NAN, 0.4], epoch=epoch) for epoch in (9, 10))
    np.testing.assert_allclose(after(remedy, early)["remedy"]["radius"], 1)
    state = after(remedy, late)["remedy"]
    np.testing.assert_allclose(state["radius"], [1.1, 0.9, 0.7])
    np.testing.assert_allclose(state["beta"], [1.3, 1.1, 0.9])
    nobody = held_out([NAN, NAN, NAN], epoch=11)
    np.testing.assert_allclose(after(remedy, late, nobody)["remedy"]["radius"], [1.1, 0.9, 0.7])


def test_fawa_waits_for_a_fair_epoch_and_skips_the_others():
    remedy = CFA(Madry(), fawa_decay=0.8, fawa_threshold=0.3)
    fair, unfair = held_out([0.3, 0.9, NAN]), held_out([0.29, 0.9, NAN])
    told, shares = [unfair, fair, fair, unfair, fair], []
    state = jax.tree.map(np.array, remedy.init_method_state(3))
    for one in told:
        shares.append(remedy.epoch_share(state, one))
        state = remedy.epoch_end(state, one)
    np.testing.assert_allclose(shares, [1, 1, 0.2, 0, 0.2])


def test_frl_by_hand():
    """Clean errors 0.1, 0.1, 0.4, boundary errors 0.2, 0.2, 0.5; means 0.2, 0.3: the last exceeds them by tau + 0.1."""
    told = held_out([0.7, 0.7, 0.1], clean=[0.9, 0.9, 0.6])
    remedy = FRL(Trades(beta=3.0), tau=0.1, rate=1.0, limit=0.5, margin_rate=1.0, most_margin=1.3)
    state = after(remedy, told)["remedy"]
    for name in state:
        np.testing.assert_allclose(state[name], [0, 0, 0.1], atol=1e-12)
    factors: Any = remedy.factors(jax.tree.map(jnp.asarray, state))
    np.testing.assert_allclose(factors.radius, [1, 1, math.exp(0.1)])
    np.testing.assert_allclose(factors.scale, [0.9, 0.9, 1.2])
    np.testing.assert_allclose(factors.beta, 1)
    # Until no class is worse than the mean by more than tau; then the radius comes down and the weights with it.
    state = after(remedy, *[told] * 9)["remedy"]
    np.testing.assert_allclose(state["clean"], [0, 0, 0.5])
    np.testing.assert_allclose(state["log_radius"], [0, 0, math.log(1.3)])
    fair = held_out([0.7, 0.7, 0.7], clean=[0.9, 0.9, 0.9])
    state = after(remedy, *[told] * 9, *[fair] * 9)["remedy"]
    assert all(np.abs(values).max() < 1e-12 for values in state.values())


def test_frl_against_a_second_writing():
    rng, rate, margin_rate, tau, limit, most = np.random.default_rng(3), 0.3, 0.4, 0.05, 0.3, 1.2
    remedy = FRL(Madry(), tau=tau, rate=rate, limit=limit, margin_rate=margin_rate, most_margin=most)
    told = []
    for _ in range(6):
        clean = np.round(rng.uniform(0.5, 1, 4), 2)
        told.append(held_out(np.round(clean * rng.uniform(0.3, 1, 4), 2), clean=clean))
    clean, boundary, radius = [0.0] * 4, [0.0] * 4, [0.0] * 4
    for one in told:
        wrong = [1 - right / 100 for right in one.clean_right]
        lost = [(right - robust) / 100 for right, robust in zip(one.clean_right, one.robust_right, strict=True)]
        for values, errors in ((clean, wrong), (boundary, lost)):
            for k in range(4):
                values[k] = max(0.0, values[k] + rate * (errors[k] - sum(errors) / 4 - tau))
            if (total := sum(values)) > limit:
                values[:] = [limit * value / total for value in values]
        for k in range(4):
            radius[k] = min(max(radius[k] + margin_rate * (lost[k] - sum(lost) / 4 - tau), 0.0), math.log(most))
    state = after(remedy, *told)["remedy"]
    np.testing.assert_allclose(state["clean"], clean, atol=1e-12)
    np.testing.assert_allclose(state["boundary"], boundary, atol=1e-12)
    np.testing.assert_allclose(state["log_radius"], radius, atol=1e-12)
    weight = [1 + (4 * (u + v) - sum(clean) - sum(boundary)) / 2 for u, v in zip(clean, boundary, strict=True)]
    factors: Any = remedy.factors(jax.tree.map(jnp.asarray, state))
    np.testing.assert_allclose(factors.weight, weight, atol=1e-12)
    assert factors.beta is None and np.mean(weight) == pytest.approx(1) and min(weight) > 1 - limit - 1e-12


def test_frl_knows_nothing_of_a_class_that_is_not_there():
    told = held_out([0.7, NAN, 0.1, 0.7], clean=[0.9, NAN, 0.6, 0.9])
    state = after(FRL(Madry(), rate=1.0), told)["remedy"]
    for values in state.values():
        assert values[1] == 0 and values[2] > 0


def run(defense, method_state, rows=None) -> tuple[Any, Any]:
    """(crafted images, what `loss` gives) on the linear network."""
    rows, batch = rows or {}, plain.batch()
    crafted = defense.craft(plain.model(), batch, rows, method_state)
    return crafted, defense.loss(plain.model(), {}, batch, crafted, rows, method_state)


def with_state(remedy, *told):
    return jax.tree.map(jnp.asarray, after(remedy, *told))


TOLD = held_out([0.8, 0.5, 0.2])
assert len(np.unique(LABELS)) > 1


@pytest.mark.slow
def test_cfa_of_trades_gives_each_class_its_radius_and_its_beta():
    """Class by class it is TRADES at that radius and beta, its losses times (1 + beta before) / (1 + beta)."""
    method = Trades(epsilon=0.1, num_steps=3, beta=6.0)
    remedy = CFA(method, lambda_1=0.3, lambda_2=0.5)
    crafted, found = run(remedy, with_state(remedy, TOLD))
    for k in np.unique(LABELS):
        accuracy = (0.8, 0.5, 0.2)[k]
        own = dataclasses.replace(method, epsilon=0.1 * (0.3 + accuracy), beta=6.0 * (0.5 + accuracy))
        images, losses = run(own, {})
        of_class = k == LABELS
        np.testing.assert_allclose(crafted[of_class], images[of_class], rtol=1e-12)
        expected = losses.losses[of_class] * 7 / (1 + own.beta)
        np.testing.assert_allclose(found.losses[of_class], expected, rtol=1e-10)
    assert found.weights is None


def test_frl_of_trades_weighs_the_two_parts_apart():
    method, told = Trades(epsilon=0.1, num_steps=3, beta=2.0), held_out([0.6, 0.3, 0.5], clean=[0.9, 0.8, 0.5])
    remedy = FRL(method, tau=0.05, rate=1.0, limit=0.9, margin_rate=0.0)
    state = with_state(remedy, told)
    _, found = run(remedy, state)
    clean, divergence = (run(dataclasses.replace(method, beta=beta), {})[1].losses for beta in (0.0, 1.0))
    divergence -= clean
    u, v = (1 + 3 * state["remedy"][name] - state["remedy"][name].sum() for name in ("clean", "boundary"))
    assert np.ptp(u) > 0.3 and np.ptp(v) > 0.3
    expected = u[LABELS] * clean + v[LABELS] * 2.0 * divergence
    assert found.weights is None  # the plain mean: u has mean 1 over the classes, not over a batch
    np.testing.assert_allclose(found.losses, expected, rtol=1e-10)


@pytest.mark.slow
def test_cfa_of_ima_gives_each_class_its_ceiling_and_its_step():
    method = IMA(eps_max=0.2, delta=0.02, num_steps=3, compact=False)
    remedy = CFA(method, lambda_1=0.5)
    rows = {"margin": jnp.full(COUNT, 0.15)}
    crafted, found = run(remedy, with_state(remedy, TOLD), rows)
    for k in np.unique(LABELS):
        factor, of_class = 0.5 + (0.8, 0.5, 0.2)[k], k == LABELS
        own = dataclasses.replace(method, eps_max=0.2 * factor, delta=0.02 * factor)
        start = jnp.minimum(rows["margin"], own.eps_max)
        images, expected = run(own, {}, {"margin": start})
        np.testing.assert_allclose(crafted.images[of_class], images.images[of_class], rtol=1e-12)
        np.testing.assert_allclose(found.rows["margin"][of_class], expected.rows["margin"][of_class], rtol=1e-12)
        np.testing.assert_allclose(found.losses[of_class], expected.losses[of_class], rtol=1e-10)
        assert np.all(found.rows["margin"][of_class] <= own.eps_max + 1e-12)
    assert remedy.margin_settings == pytest.approx((0.02, 0.3))


def test_class_weights_multiply_those_of_the_method():
    method = Gairat(epsilon=0.1, num_steps=3, burn_in_epochs=0)
    remedy = Reweight(method, strength=1.0)
    state = with_state(remedy, TOLD)
    _, found = run(remedy, state)
    _, alone = run(method, {})
    np.testing.assert_array_equal(found.losses, alone.losses)
    np.testing.assert_allclose(found.weights, alone.weights * np.array([0.4, 1, 1.6])[LABELS], rtol=1e-12)


@pytest.mark.parametrize("name", ["reweight", "frl"])
@pytest.mark.parametrize("method", [Madry(num_steps=2), Trades(num_steps=2)], ids=["pgd_at", "trades"])
def test_before_the_first_epoch_a_remedy_changes_nothing(name, method):
    remedy = defenses.REMEDIES[name](method)
    crafted, found = run(remedy, remedy.init_method_state(3))
    images, alone = run(method, {})
    np.testing.assert_array_equal(crafted, images)
    np.testing.assert_array_equal(found.losses, alone.losses)
    assert found.weights is None or np.all(found.weights == 1)


@dataclasses.dataclass(frozen=True)
class Counting(Madry):
    """A method with a state and an end of the epoch of its own."""

    def init_method_state(self, num_classes):
        return {"epochs": jnp.zeros(())}

    def epoch_end(self, method_state, held_out):
        return {"epochs": method_state["epochs"] + 1}


def test_the_method_keeps_its_own_state():
    state = after(Reweight(Counting()), TOLD, TOLD)
    assert state["method"]["epochs"] == 2 and np.ptp(state["remedy"]["weight"]) > 0


@pytest.mark.parametrize("remedy", ["cfa", "frl"])
@pytest.mark.parametrize("name", ["standard", "iaat", "mma", "ame"])
def test_what_has_no_radius_to_give_is_refused(remedy, name):
    with pytest.raises(ValueError, match=r"it goes with pgd_at, trades, .*, ima$") as caught:
        defenses.from_config({"name": name}, {"name": remedy})
    assert "\n" not in str(caught.value)
    defenses.from_config({"name": name}, {"name": "reweight"})


def test_every_other_combination_is_made():
    for name in DEFENSES:
        if name not in ("standard", "iaat", "mma", "ame"):
            for remedy in defenses.REMEDIES:
                made: Any = defenses.from_config({"name": name}, {"name": remedy})
                assert made.method == DEFENSES[name]()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "cfb"}, "classwise 'cfb' is not known (did you mean 'cfa'?)"),
        ({"name": "cfa", "lambda1": 0.3}, "field 'lambda1' is not known (did you mean 'lambda_1'?)"),
        ({"name": "cfa", "method": 3}, "field 'method' is not known"),
        ({"name": "cfa", "lambda_1": -0.1}, "lambda_1 is -0.1"),
        ({"name": "cfa", "fawa_threshold": 1.5}, "fawa_threshold is 1.5; give a number from 0 to 1"),
        ({"name": "frl", "limit": 1.0}, "limit is 1.0; give a number from 0, and below 1"),
        ({"name": "frl", "most_margin": 0.5}, "most_margin is 0.5; give a number from 1"),
        ({"name": "reweight", "strength": 2.0}, "strength is 2.0"),
    ],
)
def test_bad_fields_say_so(fields, said):
    with pytest.raises(ValueError) as caught:
        defenses.from_config({"name": "pgd_at"}, fields)
    assert said in str(caught.value)
