"""Attacks on linear models, where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_problems import SHAPE, keys, lengths, linear, pixels, run, smooth_model, two_classes

from jax_advtrain import attacks
from jax_advtrain.attacks.combine import stronger

NORMS = ("linf", "l2")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "slm", "lm"])
def test_pgd_succeeds_exactly_above_the_distance(norm, loss):
    logits_fn, images, labels, distances = two_classes()
    attack = attacks.pgd(norm=norm, epsilon=0.0, num_steps=10, loss=loss, start="clean")
    below = run(attack, keys(8), logits_fn, images, labels, epsilon=0.999 * distances[norm])
    above = run(attack, keys(8), logits_fn, images, labels, epsilon=1.001 * distances[norm])
    assert np.all(below.is_right) and np.all(below.hits == 0) and np.all(below.score < 0)
    assert not np.any(above.is_right) and np.all(above.hits > 0) and np.all(above.score > 0)
    assert np.all(above.zero_gradients == 0) and np.all(above.nonfinite_gradients == 0)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_from_a_random_start_finds_the_boundary_too(norm):
    logits_fn, images, labels, distances = two_classes()
    # A path of ten radii: on the L2 sphere the random start is forgotten exponentially only.
    attack = attacks.pgd(norm=norm, epsilon=0.0, num_steps=40, alpha=10)
    below = run(attack, keys(8), logits_fn, images, labels, epsilon=0.999 * distances[norm])
    above = run(attack, keys(8), logits_fn, images, labels, epsilon=1.02 * distances[norm])
    assert np.all(below.is_right) and not np.any(above.is_right)


@pytest.mark.parametrize("norm", NORMS)
def test_binary_models_of_one_logit(norm):
    logits_fn, images, labels, distances = two_classes()
    matrix, bias = logits_fn.args[0]
    one = jax.tree_util.Partial(
        lambda weights, images: linear(weights, images)[:, 0], (matrix[:, 1:] - matrix[:, :1], bias[1:] - bias[:1])
    )
    for loss in ("bce", "lmb"):
        attack = attacks.pgd(norm=norm, epsilon=0.0, num_steps=10, loss=loss, start="clean")
        # Unsigned labels must do: 2 y - 1 would wrap around.
        below = run(attack, keys(8), one, images, labels.astype(jnp.uint8), epsilon=0.999 * distances[norm])
        above = run(attack, keys(8), one, images, labels.astype(jnp.uint8), epsilon=1.001 * distances[norm])
        assert np.all(below.is_right) and not np.any(above.is_right)
        assert np.all(below.score < 0) and np.all(above.score > 0)


@pytest.mark.parametrize("norm", NORMS)
def test_on_boundary_measures_the_distance(norm):
    logits_fn, images, labels, distances = two_classes()
    ascent = attacks.pgd(norm=norm, epsilon=0.5, alpha=2, num_steps=20, start="clean")
    true = distances[norm]
    for placement in ("boundary", "outside", "inside"):
        attack = attacks.on_boundary(ascent, refine_steps=10, placement=placement)
        found = run(attack, keys(8), logits_fn, images, labels)
        resolution = (0.5 * 2 / 20) / 2**10
        assert np.all(found.hits > 0)
        np.testing.assert_allclose(found.distance, true, rtol=1e-4, atol=resolution)
        np.testing.assert_allclose(found.distance, lengths(found.images - images, norm), rtol=1e-6)
        right = np.asarray(attacks.is_right(logits_fn(found.images), labels))
        if placement != "boundary":
            assert np.all(right == (placement == "inside"))


def test_on_boundary_starts_from_any_image_and_leaves_unhit_samples_alone():
    logits_fn, images, labels, distances = two_classes()
    out_of_reach = np.arange(8) % 2 == 0
    epsilon = np.where(out_of_reach, 0.9, 2.0) * distances["l2"]
    ascent = attacks.pgd(norm="l2", epsilon=0.0, alpha=4, num_steps=20, start="clean")
    placed = run(attacks.on_boundary(ascent), keys(8), logits_fn, images, labels, epsilon=epsilon)
    final = run(attacks.on_boundary(ascent, placement="none"), keys(8), logits_fn, images, labels, epsilon=epsilon)
    np.testing.assert_array_equal(placed.hits > 0, ~out_of_reach)
    np.testing.assert_array_equal(placed.images[out_of_reach], final.images[out_of_reach])
    np.testing.assert_allclose(placed.distance[out_of_reach], epsilon[out_of_reach], rtol=1e-5)
    np.testing.assert_allclose(placed.distance[~out_of_reach], distances["l2"][~out_of_reach], rtol=2e-3)


def test_on_boundary_of_a_sample_wrong_from_the_start_collapses_on_the_clean_image():
    logits_fn, images, labels, _ = two_classes()
    ascent = attacks.pgd(norm="l2", epsilon=0.3, num_steps=5, start="clean")
    found = run(attacks.on_boundary(ascent, refine_steps=5), keys(8), logits_fn, images, 1 - labels)
    assert np.all(found.hits == 6)
    np.testing.assert_allclose(found.distance, 0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_fgsm_is_one_step_of_its_closed_form(norm):
    logits_fn = smooth_model()
    images, labels = pixels(6), np.array([0, 1, 2, 0, 1, 2])
    epsilon = np.array([0.0, 0.1, 0.2, 0.3, 0.5, 1.0])
    found = run(attacks.fgsm(norm=norm, epsilon=epsilon), keys(6), logits_fn, images, labels)

    def true_log_probability(image, label):
        return jax.nn.log_softmax(logits_fn(image[None])[0])[label]

    gradient = -np.asarray(jax.jit(jax.vmap(jax.grad(true_log_probability)))(images, labels))
    size = lengths(gradient, "l2")[:, None, None, None]
    direction = np.sign(gradient) if norm == "linf" else gradient / size
    expected = np.clip(images + epsilon[:, None, None, None] * direction, 0, 1)
    np.testing.assert_allclose(found.images, expected, atol=2e-7)


def test_ifgsm_steps_a_quarter_of_epsilon_and_alone_may_leave_the_ball():
    logits_fn, images, labels, _ = two_classes()
    once = run(attacks.ifgsm(epsilon=0.08, num_steps=1), keys(8), logits_fn, images, labels)
    np.testing.assert_allclose(lengths(once.images - images, "linf"), 0.02, rtol=1e-4)
    settings = {"epsilon": 0.08, "num_steps": 10}
    inside = run(attacks.ifgsm(**settings), keys(8), logits_fn, images, labels)
    outside = run(attacks.ifgsm(project=False, **settings), keys(8), logits_fn, images, labels)
    np.testing.assert_allclose(lengths(inside.images - images, "linf"), 0.08, rtol=1e-4)
    np.testing.assert_allclose(lengths(outside.images - images, "linf"), 0.2, rtol=1e-4)


def test_targeted_attacks_reach_every_class_and_labels_stay_the_truth():
    # Class j has the logit of pixel j alone, so every class can be reached.
    matrix = jnp.eye(6, 3)
    logits_fn = jax.tree_util.Partial(linear, (matrix, jnp.zeros(3)))
    flat = np.full((9, 6), 0.5, np.float32)
    truth, targets = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    flat[np.arange(9), truth] += 0.1
    images, labels = flat.reshape(9, *SHAPE), truth
    attack = attacks.pgd(norm="linf", epsilon=0.06, num_steps=10, loss="ce", start="clean")
    found = run(attack, keys(9), logits_fn, images, labels, targets=targets)
    predicted = np.argmax(logits_fn(found.images), axis=1)
    np.testing.assert_array_equal(predicted, targets)
    np.testing.assert_array_equal(found.is_right, targets == labels)
    assert np.all(found.hits > 0)
    out_of_reach = run(attack, keys(9), logits_fn, images, labels, targets=targets, epsilon=0.049)
    np.testing.assert_array_equal(out_of_reach.hits > 0, targets == labels)
    placed = run(attacks.on_boundary(attack), keys(9), logits_fn, images, labels, targets=targets)
    np.testing.assert_allclose(placed.distance, np.where(targets == labels, 0, 0.05), atol=1e-4)


def results(images, right, score):
    counts = jnp.arange(len(right))
    return attacks.AttackResult(
        jnp.full((len(right), 2), images), jnp.array(right), jnp.array(score), counts, counts, counts, counts * 0
    )


def test_the_stronger_result_is_wrong_then_of_larger_score_then_the_earlier():
    first = results(0.0, [True, True, False, False, True, False], [-1.0, -1.0, 1.0, 1.0, -2.0, 1.0])
    second = results(1.0, [True, False, True, False, True, False], [-1.0, -9.0, 9.0, 2.0, -1.0, 0.5])
    best = stronger(first, second)
    taken = np.array([False, True, False, True, True, False])
    np.testing.assert_array_equal(best.images[:, 0], taken)
    np.testing.assert_array_equal(best.is_right, [True, False, False, False, True, False])
    np.testing.assert_array_equal(best.score, [-1.0, -9.0, 1.0, 2.0, -1.0, 1.0])
    np.testing.assert_array_equal(best.hits, 2 * np.arange(6))


def test_worst_of_names_the_member_that_won_and_keeps_the_earlier_at_a_tie():
    logits_fn, images, labels, distances = two_classes()
    reach = 0.7 * distances["linf"].max()
    weak = attacks.pgd(epsilon=0.0, num_steps=4, start="clean")
    strong = attacks.pgd(epsilon=reach, num_steps=4, start="clean")
    attack = attacks.worst_of(weak, strong, strong)
    assert attack.passes == 27
    found = run(attack, keys(8), logits_fn, images, labels)
    np.testing.assert_array_equal(found.winner, 1)
    np.testing.assert_array_equal(found.is_right, distances["linf"] > reach)
    assert 0 < np.sum(found.is_right) < 8
    tie = run(attacks.worst_of(strong, strong, weak), keys(8), logits_fn, images, labels)
    np.testing.assert_array_equal(tie.winner, 0)


def test_restarts_are_the_best_of_runs_with_folded_keys():
    logits_fn = smooth_model(seed=3)
    images, labels = pixels(16, seed=3), np.arange(16) % 3
    attack = attacks.pgd(norm="linf", epsilon=0.2, num_steps=1, alpha=0.3)
    found = run(attacks.restarts(attack, 4), keys(16), logits_fn, images, labels)
    alone = [
        run(attack, jax.vmap(jax.random.fold_in, (0, None))(keys(16), number), logits_fn, images, labels)
        for number in range(4)
    ]
    # A wrong one first, then the larger score: a wrong one always has the larger score here.
    scores = np.stack([result.score for result in alone])
    winner = scores.argmax(axis=0)
    np.testing.assert_array_equal(found.winner, winner)
    assert len(set(winner)) > 1
    np.testing.assert_allclose(found.images, np.stack([r.images for r in alone])[winner, np.arange(16)], atol=1e-6)
    np.testing.assert_array_equal(found.hits, np.sum([result.hits for result in alone], axis=0))
    assert attacks.restarts(attack, 4).passes == 4 * attack.passes


def test_random_starts_are_uniform_in_the_ball():
    images = np.full((4000, 3), 0.5, np.float32)
    for norm in NORMS:
        draws = np.asarray(jax.jit(attacks.norms.uniform_in_ball, static_argnums=2)(keys(4000), images, norm))
        assert np.all(lengths(draws, norm) <= 1 + 1e-6)
        # The share of the ball's volume within radius r is r^3 in both norms.
        for radius in (0.4, 0.5 ** (1 / 3), 0.95):
            assert abs(np.mean(lengths(draws, norm) < radius) - radius**3) < 0.03
        np.testing.assert_allclose(draws.mean(axis=0), 0, atol=0.04)


@pytest.mark.parametrize(("norm", "distribution"), [("linf", "uniform"), ("l2", "uniform"), ("l2", "gaussian")])
def test_noise_has_length_epsilon(norm, distribution):
    logits_fn, images, labels, _ = two_classes()
    epsilon = np.linspace(0, 0.2, 8)
    attack = attacks.noise(norm=norm, epsilon=0.1, distribution=distribution)
    found = run(attack, keys(8), logits_fn, images, labels, epsilon=epsilon)
    np.testing.assert_allclose(lengths(found.images - images, norm), epsilon, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found.images[0], images[0])
    np.testing.assert_array_equal(found.is_right, attacks.is_right(logits_fn(found.images), labels))
    np.testing.assert_array_equal(found.hits, ~found.is_right)
    again = run(attack, keys(8, seed=1), logits_fn, images, labels, epsilon=epsilon)
    assert not np.any(np.all(again.images[1:] == found.images[1:], axis=(1, 2, 3)))


def test_temperature_changes_the_loss_as_defined():
    logits, labels = jnp.array([[1.0, 3.0, -2.0], [0.5, 0.0, 4.0]]), jnp.array([0, 2])
    cold = attacks.with_temperature("ce", 0.2)
    np.testing.assert_allclose(cold(logits, labels), attacks.cross_entropy(5 * logits, labels), rtol=1e-6)
    each = attacks.with_temperature("slm", jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(
        each(logits, labels),
        attacks.soft_logit_margin(logits * jnp.array([[2.0], [0.5]]), labels),
        rtol=1e-6,
    )
    by_class = attacks.with_temperature("ce", jnp.array([0.5, 100.0, 2.0]), per_class=True)
    np.testing.assert_allclose(
        by_class(logits, labels), attacks.cross_entropy(logits * jnp.array([[2.0], [0.5]]), labels), rtol=1e-6
    )
    # Targets do not change whose temperature it is: the true class's.
    np.testing.assert_allclose(
        -by_class.ascended(logits, labels, jnp.array([1, 1])),
        attacks.cross_entropy(logits * jnp.array([[2.0], [0.5]]), jnp.array([1, 1])),
        rtol=1e-6,
    )
    # Dense labels, as in segmentation: one class a pixel.
    dense, truth = jnp.stack([logits, -logits])[:, None], jnp.array([[[0, 2]], [[1, 0]]])
    table = jnp.array([0.5, 4.0, 2.0])

    def summed(logits, labels):
        return jnp.sum(attacks.cross_entropy(logits, labels), axis=(1, 2))

    np.testing.assert_allclose(
        attacks.with_temperature(summed, table, per_class=True)(dense, truth),
        summed(dense / table[truth][..., None], truth),
        rtol=1e-6,
    )
