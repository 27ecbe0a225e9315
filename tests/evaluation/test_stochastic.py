"""Models that answer at random, evaluated: verdicts follow seed and sample id, and closed forms bound them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain import attacks
from jax_advtrain.data import Dataset
from jax_advtrain.devices import make_mesh
from jax_advtrain.evaluation.attack_dataset import attack_dataset
from jax_advtrain.evaluation.classwise.attacking import attacked_answers
from jax_advtrain.evaluation.evaluate import evaluate

COUNT, FEATURES, EPSILON, NOISE = 24, 16, 0.05, 0.02
SIGNS = np.where(np.arange(FEATURES) % 3, 1.0, -1.0).astype(np.float32)


def _noisy(signs, images, keys):
    """Two classes, score = <signs, x - 0.5> / FEATURES + noise: an L-inf radius moves it by as much."""
    noise = jax.vmap(jax.random.normal)(keys)
    score = (images - 0.5) @ signs / FEATURES + NOISE * noise
    return jnp.stack([score, -score, jnp.full_like(score, -1), jnp.full_like(score, -1)], axis=1)


@pytest.fixture(scope="module")
def samples():
    scores = np.linspace(0.005, 0.2, COUNT, dtype=np.float32) * np.where(np.arange(COUNT) % 2, 1, -1)
    images = (0.5 + scores[:, None] * SIGNS).astype(np.float32)
    labels = np.where(scores > 0, 0, 1).astype(np.int32)
    data = Dataset("noisy", images, labels, np.arange(COUNT) * 7, tuple("abcd"), split="test")
    return data, np.abs(scores)


def model():
    return attacks.stochastic(jax.tree_util.Partial(_noisy, jnp.asarray(SIGNS)))


PGD = attacks.eot(attacks.pgd(norm="linf", epsilon=0.0, num_steps=4), 3)
RAND = attacks.autoattack(norm="linf", epsilon=0.0, version="rand", num_steps=4, eot_passes=3)


@pytest.mark.parametrize(
    ("attack", "active_set"),
    [
        pytest.param(PGD, False, id="pgd"),
        pytest.param(RAND, False, id="autoattack-rand", marks=pytest.mark.slow),
        pytest.param(RAND, True, id="autoattack-rand active", marks=pytest.mark.slow),
    ],
)
def test_samples_fall_where_the_noise_allows_it(samples, attack, active_set):
    data, distances = samples
    found = attack_dataset(attack, model(), data, epsilon=EPSILON, batch_size=10, active_set=active_set)
    far = distances > EPSILON + 5 * NOISE
    assert far.any() and found.is_right[far].all()
    assert not found.is_right[distances < EPSILON - 2 * NOISE].any()


@pytest.mark.parametrize("attack", [PGD, attacks.until_success(PGD)])
def test_no_lucky_draw_ends_an_ascent(samples, attack):
    """One draw that the model gets wrong is no success: the image may be right at the next."""
    with pytest.raises(ValueError, match="one draw of a stochastic model"):
        attack_dataset(attack, model(), samples[0], epsilon=EPSILON, active_set=True)


def test_what_it_believes_is_of_the_draw_that_it_predicts_by(samples):
    data, _ = samples
    found = attacked_answers(None, model(), data, make_mesh(), norm="linf", epsilon=0.0, seed=0)
    np.testing.assert_array_equal(found.probabilities.argmax(-1), found.prediction)


def test_verdicts_follow_the_seed_and_the_sample(samples):
    data, distances = samples
    clean = attack_dataset(None, model(), data, seed=1)
    same = attack_dataset(None, model(), data, seed=1, batch_size=7)
    np.testing.assert_array_equal(clean.is_right, same.is_right)
    np.testing.assert_allclose(clean.score, same.score, atol=1e-6)
    other = attack_dataset(None, model(), data, seed=2)
    assert np.all(np.abs(other.score - clean.score) > 0)
    # Of both draws the noise is what it should be: logits differ by twice the score.
    noise = np.concatenate([found.score / -2 - distances for found in (clean, other)])
    assert 0.5 * NOISE < noise.std() < 1.6 * NOISE


@pytest.mark.slow
def test_a_suite_and_its_state_go_on(samples, tmp_path):
    data, _ = samples
    members = ["autoattack:version=rand:num_steps=4:eot_passes=2"]
    first = evaluate(model(), data, members, {"linf": [EPSILON]}, state_folder=tmp_path)
    again = evaluate(model(), data, members, {"linf": [EPSILON]}, state_folder=tmp_path)
    assert first.records[1].accuracy == again.records[1].accuracy < first.records[0].accuracy


def test_attacks_without_keys_refuse(samples):
    with pytest.raises(ValueError, match="eot"):
        attack_dataset(attacks.square(epsilon=0.0, num_steps=3), model(), samples[0], epsilon=EPSILON)
