"""The training step on one device: what pads a batch counts for nothing, averaged weights, donation, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_training import assert_near, assert_same, host_batch, tiny

from jax_advtrain.defenses import IMA, Madry, Standard
from jax_advtrain.training.state import evaluated_params
from jax_advtrain.training.step import means

EPOCH = jnp.int32(0)
UNCOMPACTED = {IMA: {"compact": False}}
SMALL_IMA = IMA(eps_max=0.3, delta=0.1, num_steps=4, compact=False)


def after_one_step(made, batch):
    state, step = made.start(batch)
    state, loss = step(state, batch, EPOCH)
    return jax.tree.map(np.asarray, state), float(loss)


@pytest.mark.parametrize(
    ("model", "defense"),
    [
        ("mlp", SMALL_IMA),
        ("batch_norm", IMA(eps_max=0.3, delta=0.1, num_steps=2, attack_bn="train")),
    ],
    ids=["mlp", "batch_norm"],
)
def test_padding_moves_nothing(model, defense):
    """Weights, margins, metrics, BatchNorm averages: the same bits, whatever images, labels and ids fill the rows."""
    made = tiny(defense, model)
    state, step = made.start(host_batch(5, 8))
    states = []
    for padding_seed in (0, 1):
        batch = host_batch(5, 8, padding_seed=padding_seed)
        fresh, _ = made.start(batch)
        fresh, loss = step(fresh, batch, EPOCH)
        states.append(jax.tree.map(np.asarray, (fresh, loss)))
    different = [np.mean(host_batch(5, 8, padding_seed=seed).images) for seed in (0, 1)]
    assert different[0] != different[1]
    assert_same(*states)
    after, _ = states[0]
    assert after.sums["count"] == 10
    moved = np.flatnonzero(after.sample_state["margin"] != np.asarray(state.sample_state["margin"]))
    slots = host_batch(5, 8).slots.reshape(2, 8)[:, :5] + np.array([[0], [12]])
    assert len(moved) and set(moved) <= set(slots.reshape(-1).tolist())


@pytest.mark.parametrize("model", ["mlp", "batch_norm"])
def test_a_padded_batch_equals_one_without_padding(model):
    made = tiny(SMALL_IMA, model)
    padded, padded_loss = after_one_step(made, host_batch(5, 8))
    whole = jax.tree.map(lambda values: values.reshape(2, 8, *values.shape[1:])[:, :5], host_batch(5, 8))
    whole = jax.tree.map(lambda values: values.reshape(10, *values.shape[2:]), whole)
    alone, alone_loss = after_one_step(made, whole)
    assert padded_loss == pytest.approx(alone_loss, abs=1e-6)
    assert_near(padded, alone)


def test_a_batch_of_padding_alone_only_counts_as_a_step():
    made = tiny(SMALL_IMA, "batch_norm")
    state, step = made.start(host_batch(0, 8))
    before = jax.tree.map(np.array, state)
    after, loss = step(state, host_batch(0, 8), EPOCH)
    assert float(loss) == 0
    assert int(after.step) == 1
    assert_same(after._replace(step=before.step, opt_state=None), before._replace(opt_state=None))


def test_averaged_weights():
    decay, batch = 0.75, host_batch(8, 8)
    made = tiny(Standard(), ema_decay=decay)
    state, step = made.start(batch)
    by_hand = jax.tree.map(np.array, state.params)
    assert_same(state.averaged, by_hand)
    for _ in range(3):
        state, _ = step(state, batch, EPOCH)
        by_hand = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * np.asarray(new), by_hand, state.params)
    assert_near(state.averaged, by_hand, atol=1e-7)
    assert_same(evaluated_params(state), state.averaged)
    plain, plain_step = tiny(Standard()).start(batch)
    for _ in range(3):
        plain, _ = plain_step(plain, batch, EPOCH)
    assert_same(plain.params, state.params)  # the average changes no training
    assert evaluated_params(plain) is plain.params


def test_sums_are_those_of_all_steps():
    made = tiny(Standard())
    state, step = made.start(host_batch(8, 8))
    losses = []
    for valid in (8, 3):
        state, loss = step(state, host_batch(valid, 8), EPOCH)
        losses.append(float(loss))
    found = means(state.sums)
    assert found["loss"] == pytest.approx((16 * losses[0] + 6 * losses[1]) / 22, rel=1e-6)
    assert set(found) == {"loss", "clean_accuracy"} and int(state.step) == 2


def test_the_state_is_donated():
    batch = host_batch(8, 8)
    state, step = tiny(IMA(beta=0.0)).start(batch)
    compiled = step.lower(state, batch, EPOCH).compile()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert compiled.memory_analysis().alias_size_in_bytes >= size
    leaves = jax.tree.leaves(state)
    compiled(state, batch, EPOCH)
    assert all(leaf.is_deleted() for leaf in leaves)


@pytest.mark.slow
@pytest.mark.parametrize("method", [IMA, pytest.param(Madry, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_steps_of_the_attack(method):
    batch, sizes = host_batch(8, 8), {}
    for num_steps in (1, 20, 100):
        state, step = tiny(method(num_steps=num_steps, **UNCOMPACTED.get(method, {}))).start(batch)
        sizes[num_steps] = step.lower(state, batch, EPOCH).compile().memory_analysis().temp_size_in_bytes
    print(f"{method.__name__}: bytes of temporaries by num_steps {sizes}")
    assert 0 < sizes[100] <= 1.01 * sizes[20]
    # XLA unrolls a loop of one turn, whose buffers are others: a few times the batch's images more or fewer.
    assert abs(sizes[1] - sizes[20]) <= 4 * 4 * batch.images.size


def test_shapes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"batch size 16 must be a multiple of data\.num_shards 3"):
        tiny(Standard(), num_shards=3).start(host_batch(8, 8))
