"""The defenses through the real step, against a second, plain writing of what they do."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import CLASSES, IMAGE, SGD, assert_near, assert_same, host_batch, tiny

from jax_advtrain import defenses, tasks
from jax_advtrain.attacks import norms
from jax_advtrain.defenses import IMA, Madry, Standard
from jax_advtrain.models import functional

BATCH = host_batch(6, 8)
VALID = BATCH.slots.reshape(-1) < 12
RATE = SGD["learning_rate"]


def one_step(made, batch=BATCH, epoch=0):
    state, step = made.start(batch)
    before = jax.tree.map(np.array, state)
    state, loss = step(state, batch, jnp.int32(epoch))
    return before, jax.tree.map(np.array, state), float(loss)


def plain_logits(params, images):
    hidden = images.reshape(len(images), -1) @ params["dense0"]["kernel"] + params["dense0"]["bias"]
    return jnp.maximum(hidden, 0) @ params["dense1"]["kernel"] + params["dense1"]["bias"]


def plain_losses(params, images, labels):
    logits = plain_logits(params, images)
    return jnp.log(jnp.sum(jnp.exp(logits), axis=1)) - logits[jnp.arange(len(labels)), labels]


def plain_step(params, images, labels):
    """Gradient descent on the mean loss of the valid samples."""

    def mean(params):
        return jnp.mean(plain_losses(params, images[VALID], labels[VALID]))

    loss, gradient = jax.value_and_grad(mean)(params)
    return jax.tree.map(lambda weights, slope: weights - RATE * slope, params, gradient), float(loss)


def right(params, images):
    return np.asarray(jnp.argmax(plain_logits(params, images), axis=1) == BATCH.labels)


PIXELS = BATCH.images.astype(np.float32) / 255


def test_standard_is_descent_on_the_clean_loss():
    before, after, loss = one_step(tiny(Standard()))
    params, plain_loss = plain_step(before.params, PIXELS, BATCH.labels)
    assert_near(after.params, params)
    assert loss == pytest.approx(plain_loss, abs=1e-6)
    assert after.sums["clean_accuracy"] == np.sum(right(before.params, PIXELS)[VALID])
    assert after.sample_state == {}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_at_is_descent_on_the_loss_at_the_pgd_point(norm):
    epsilon, num_steps, alpha = {"linf": 0.2, "l2": 1.0}[norm], 5, 2.0
    made = tiny(Madry(norm=norm, epsilon=epsilon, num_steps=num_steps, alpha=alpha))
    before, after, loss = one_step(made, epoch=4)
    # Randomness follows (seed, epoch, sample id); the second half of the key is the attack's.
    base = jax.random.fold_in(jax.random.key(made.recipe.seed), 4)

    keys = jnp.stack([jax.random.split(jax.random.fold_in(base, sample_id))[1] for sample_id in BATCH.ids])
    noise = epsilon * norms.uniform_in_ball(keys, jnp.asarray(PIXELS), norm)

    def projected(noise):
        if norm == "linf":
            return jnp.clip(noise, -epsilon, epsilon)
        size = jnp.sqrt(jnp.sum(noise**2, axis=(1, 2, 3), keepdims=True))
        return noise * jnp.minimum(1, epsilon / size)

    def direction(gradient):
        if norm == "linf":
            return jnp.sign(gradient)
        return gradient / jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2, 3), keepdims=True))

    attacked = jnp.clip(PIXELS + projected(noise), 0, 1)
    for _ in range(num_steps):
        gradient = jax.grad(lambda x: jnp.sum(plain_losses(before.params, x, BATCH.labels)))(attacked)
        step = alpha * epsilon / num_steps
        attacked = jnp.clip(PIXELS + projected(attacked + step * direction(gradient) - PIXELS), 0, 1)
    params, plain_loss = plain_step(before.params, attacked, BATCH.labels)
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    assert_near(after.params, params, atol=1e-5)
    assert after.sums["attacked_accuracy"] == np.sum(right(before.params, attacked)[VALID])


@pytest.mark.slow
def test_a_warm_up_of_pgd_at_grows_the_radius_epoch_by_epoch():
    def after(epoch, **fields):
        return one_step(tiny(Madry(num_steps=3, **fields)), epoch=epoch)[1].params

    for epoch, epsilon in ((0, 0.05), (2, 0.15), (3, 0.2), (9, 0.2)):
        assert_near(after(epoch, epsilon=0.2, warmup_epochs=4), after(epoch, epsilon=epsilon))


def test_ima_with_beta_0_is_standard_training_whose_margins_all_expand():
    before, after, loss = one_step(tiny(IMA(beta=0.0, eps_max=0.3, delta=0.1)))
    _, standard, standard_loss = one_step(tiny(Standard()))
    assert loss == standard_loss
    assert_same(after.params, standard.params)
    slots = (BATCH.slots + np.repeat([0, 12], 8))[VALID]
    expected = before.sample_state["margin"].copy()
    expected[slots[right(before.params, PIXELS)[VALID]]] += np.float32(0.1)
    np.testing.assert_allclose(after.sample_state["margin"], expected, rtol=1e-6)
    assert after.sums["attacked_accuracy"] == after.sums["clean_accuracy"]


def test_margins_freeze_at_the_epoch_asked_for():
    made = tiny(IMA(eps_max=0.3, delta=0.1, num_steps=3, compact=False, freeze_epoch=2))
    state, step = made.start(BATCH)
    for epoch, is_frozen in ((1, False), (2, True), (3, True)):
        before = np.array(state.sample_state["margin"])
        weights = np.array(state.params["dense0"]["kernel"])
        state, _ = step(state, BATCH, jnp.int32(epoch))
        assert np.array_equal(before, state.sample_state["margin"]) == is_frozen
        assert not np.array_equal(weights, state.params["dense0"]["kernel"])  # training goes on


@dataclasses.dataclass(frozen=True)
class Recorded(IMA):
    """IMA that keeps the images it crafted, whether they entered the loss, as rows of the state."""

    def init_rows(self, num_slots):
        more = {"image": jnp.zeros((num_slots, *IMAGE)), "enters": jnp.zeros(num_slots)}
        return {**super().init_rows(num_slots), **more}

    def loss(self, model, batch_stats, batch, crafted, rows, method_state):
        found = super().loss(model, batch_stats, batch, crafted, rows, method_state)
        enters = found.metrics["clean_accuracy"] * (crafted.hits > 0)
        return found._replace(rows={**found.rows, "image": crafted.images, "enters": enters})


@pytest.mark.slow
def test_batch_norm_in_both_modes_of_the_attack():
    """Only the clean and the attacked forward move the averages, however often the attack saw the network."""
    apply = jax.jit(functional.apply, static_argnames=("graphdef", "train", "groups"))
    images = []
    for attack_bn in ("eval", "train"):
        defense = Recorded(eps_max=0.5, delta=0.3, num_steps=3, compact=False, attack_bn=attack_bn)
        made = tiny(defense, "batch_norm")
        before, after, _ = one_step(made)
        slots = np.where(VALID, BATCH.slots + np.repeat([0, 12], 8), 0)
        crafted, enters = after.sample_state["image"][slots], VALID & (after.sample_state["enters"][slots] == 1)
        assert 0 < enters.sum() < VALID.sum()
        stats = jax.tree.map(jnp.asarray, before.batch_stats)
        for seen, mask in ((PIXELS, VALID), (crafted, enters)):
            _, stats = apply(
                made.network.graphdef, before.params, stats, seen, train=True, mask=mask, groups=made.recipe.num_shards
            )
        assert_near(after.batch_stats, stats)
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.batch_stats, stats)
        assert min(jax.tree.leaves(moved)) > 1e-3
        images.append(crafted[VALID])
    # Were the switch dead, both would craft the same.
    assert np.abs(images[0] - images[1]).max() > 0.01


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "imaa"}, "ima"),
        ({}, "ima"),
        ({"name": "ima", "eps_maxx": 0.3}, "eps_max"),
        ({"name": "pgd_at", "delta": 0.3}, "epsilon"),
        ({"name": "ima", "delta": 0.4, "eps_max": 0.3}, "delta must not exceed eps_max"),
        ({"name": "ima", "delta": float("nan")}, "delta is nan"),
        ({"name": "ima", "delta": 0.0}, "delta is 0.0"),
        ({"name": "ima", "eps_max": float("inf")}, "eps_max inf"),
        ({"name": "ima", "eps_max": float("nan")}, "eps_max nan"),
        ({"name": "ima", "beta": 1.5}, "beta is 1.5"),
        ({"name": "ima", "beta": float("nan")}, "beta is nan"),
        ({"name": "ima", "beta_position": 4}, "beta_position is 4"),
        ({"name": "ima", "alpha": -1.0}, "alpha is -1.0"),
        ({"name": "ima", "num_steps": 0}, "num_steps"),
        ({"name": "ima", "refine_steps": -1}, "refine_steps is -1"),
        ({"name": "ima", "placement": "middle"}, "boundary, outside, inside, none"),
        ({"name": "ima", "attack_loss": "hinge"}, "ce, lm, slm, dlr, bce, lmb"),
        ({"name": "ima", "norm": "l3"}, "linf, l2"),
        ({"name": "ima", "start": "middle"}, "random, clean"),
        ({"name": "ima", "attack_bn": "both"}, "eval, train"),
        ({"name": "pgd_at", "epsilon": -0.1}, "epsilon is -0.1"),
        ({"name": "pgd_at", "epsilon": float("nan")}, "epsilon is nan"),
        ({"name": "pgd_at", "attack_bn": "both"}, "eval, train"),
    ],
)
def test_bad_settings_are_answered_with_one_line_that_names_the_valid_ones(spec, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        defenses.from_config(spec)
    assert "\n" not in str(caught.value)


def test_settings_reach_the_defense():
    assert defenses.from_config({"name": "standard"}) == Standard()
    assert defenses.from_config({"name": "pgd_at", "epsilon": 0.1, "norm": "l2"}) == Madry(epsilon=0.1, norm="l2")
    made = defenses.from_config({"name": "ima", "eps_max": 3.0, "delta": 0.1, "norm": "l2", "freeze_epoch": 4})
    assert made == IMA(eps_max=3.0, delta=0.1, norm="l2", freeze_epoch=4)
    assert made.margin_settings == (0.1, 3.0)
    np.testing.assert_allclose(made.init_rows(3)["margin"], 0.1, rtol=1e-6)


def test_tasks_by_the_number_of_outputs():
    assert tasks.for_outputs(1) is tasks.BINARY and tasks.for_outputs(CLASSES) is tasks.CLASSIFICATION
    logits, labels = jnp.array([2.0, -1.0, 0.0]), jnp.array([1, 1, 0])
    np.testing.assert_allclose(tasks.BINARY.loss(logits, labels), np.log1p(np.exp([-2.0, 1.0, 0.0])), rtol=1e-6)
    np.testing.assert_array_equal(tasks.BINARY.is_right(logits, labels), [True, False, True])
    logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    np.testing.assert_array_equal(tasks.CLASSIFICATION.is_right(logits, jnp.array([0, 2])), [True, False])
    np.testing.assert_allclose(tasks.CLASSIFICATION.score(logits, jnp.array([0, 2])), [-1.0, 2.0])


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_is_the_loss_of_smoothed_targets(smoothing):
    logits, labels = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), jnp.array([0, 2])
    task = tasks.smoothed(tasks.CLASSIFICATION, smoothing)
    targets = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    expected = -np.sum(targets * np.asarray(jax.nn.log_softmax(logits)), axis=1)
    np.testing.assert_allclose(task.loss(logits, labels), expected, rtol=1e-6)
    np.testing.assert_array_equal(task.is_right(logits, labels), [True, False])
    # One logit as two.
    z, y = jnp.array([2.0, -1.0]), jnp.array([1, 1])
    two = task.loss(jnp.stack([jnp.zeros(2), z], axis=-1), y)
    np.testing.assert_allclose(tasks.smoothed(tasks.BINARY, smoothing).loss(z, y), two, rtol=1e-6)


def test_no_label_smoothing_is_the_task_itself():
    assert tasks.smoothed(tasks.CLASSIFICATION, 0.0) is tasks.CLASSIFICATION
    with pytest.raises(ValueError, match="label_smoothing is 1"):
        tasks.smoothed(tasks.CLASSIFICATION, 1.0)
