"""Each method against a second, plain writing in float64 numpy on a linear network, and against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import linear_model as plain
import numpy as np
import pytest
from linear_model import COUNT, IMAGES, LABELS

from jax_advtrain import attacks
from jax_advtrain.defenses import DEFENSES, IMA, NFGSM, Ame, FastAT, Fat, Gairat, Iaat, Madry, Mart, Mma
from jax_advtrain.defenses.base import AtRadius
from jax_advtrain.defenses.gairat import geometry_weight
from jax_advtrain.defenses.mart import boosted_cross_entropy

# Compiling takes most of the time of these tests; what is marked slow runs in CI's second step.
NORMS = ["linf", pytest.param("l2", marks=pytest.mark.slow)]
EPSILON = {"linf": 0.08, "l2": 0.4}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def craft(defense, epoch=0, rows=None, unit_start=None):
    return defense.craft(plain.model(), plain.batch(epoch, unit_start), rows or {}, {})


def loss(defense, crafted, epoch=0, rows=None):
    return defense.loss(plain.model(), {}, plain.batch(epoch), crafted, rows or {}, {})


def kl(p, q):
    return np.sum(p * (np.log(p) - np.log(q)), axis=1)


@pytest.mark.parametrize("norm", NORMS)
def test_mart(norm):
    epsilon = EPSILON[norm]
    defense = Mart(norm=norm, epsilon=epsilon, num_steps=4, alpha=2.0, beta=5.0)
    noise = np.random.default_rng(0).normal(size=IMAGES.shape)
    crafted = craft(defense, unit_start=noise)
    start = IMAGES + plain.in_ball(0.001 * noise, epsilon, norm)
    expected = plain.ascent(start, epsilon, 2.0 * epsilon / 4, 4, norm)[-1]
    np.testing.assert_allclose(crafted, expected, atol=1e-12)
    p, q = plain.softmax(plain.logits(IMAGES)), plain.softmax(plain.logits(expected))
    true, others = (rows := np.arange(COUNT)), q.copy()
    others[true, LABELS] = -1
    losses = -np.log(q[rows, LABELS]) - np.log(1 - others.max(axis=1)) + 5 * kl(p, q) * (1 - p[rows, LABELS])
    np.testing.assert_allclose(loss(defense, crafted).losses, losses, rtol=1e-10)


def test_trades_of_two_classes_has_a_closed_form():
    """KL(p || q) of Bernoulli variables, of one logit and of the same two."""
    z, w = np.array([0.3, -2.0, 5.0]), np.array([-1.0, -2.0, 4.0])
    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-w))
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    np.testing.assert_allclose(attacks.kl_divergence(jnp.asarray(w), jnp.asarray(z)), expected, atol=1e-14)
    two = (jnp.stack([jnp.zeros(3), jnp.asarray(values)], axis=-1) for values in (w, z))
    np.testing.assert_allclose(attacks.kl_divergence(*two), expected, atol=1e-14)


@pytest.mark.parametrize("size", [1e4, *(pytest.param(size, marks=pytest.mark.slow) for size in (1e2, 1e30))])
def test_losses_of_sure_networks_are_finite_and_so_are_their_gradients(size):
    """What made TRADES' loss NaN (its issue 30): probabilities that underflow to 0, in float32."""
    signs = np.array([[1, -1, 0], [-1, 1, 0], [1, 1, -1]], np.float32)
    clean, attacked = jnp.asarray(size * signs), jnp.asarray(-size * signs[::-1])
    labels = jnp.array([0, 0, 2])
    for function in (
        lambda attacked, clean: attacks.kl_divergence(attacked, clean),
        lambda attacked, clean: boosted_cross_entropy(attacked, labels),
    ):
        values = function(attacked, clean)
        assert values.dtype == np.float32 and np.all(np.isfinite(values)) and np.all(values >= 0)
        for gradient in jax.grad(lambda a, c, f=function: jnp.sum(f(a, c)), argnums=(0, 1))(attacked, clean):
            assert np.all(np.isfinite(gradient))
    assert np.all(attacks.kl_divergence(clean, clean) == 0)


def test_a_loss_with_a_reference_compiles_once_and_refuses_what_it_cannot_do():
    compiled = []

    @jax.jit
    def run(attack, images):
        compiled.append(1)
        return attack(jax.random.key(0), plain.model().logits_fn, images, jnp.asarray(LABELS))

    for seed in (0, 1):
        reference = jnp.asarray(np.random.default_rng(seed).normal(size=(COUNT, 3)))
        run(attacks.pgd(epsilon=0.1, num_steps=2, loss=attacks.divergence_from(reference)), jnp.asarray(IMAGES))
    assert len(compiled) == 1
    divergence = attacks.divergence_from(jnp.zeros((COUNT, 3)))
    for said, wrong in (
        ("takes no temperature", lambda: attacks.with_temperature(divergence, 0.5)),
        (
            "knows no targets",
            lambda: divergence.ascended(jnp.zeros((COUNT, 3)), jnp.zeros(COUNT, int), jnp.ones(COUNT)),
        ),
        ("reference of shape", lambda: divergence(jnp.zeros((COUNT, 4)), jnp.zeros(COUNT, int))),
    ):
        with pytest.raises(ValueError, match=said):
            wrong()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("epoch", "tau"), [(4, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0, 0), (9, 3)))]
)
def test_fat_stops_at_the_wrong_iterate_after_tau_others(norm, epoch, tau):
    epsilon, num_steps = 3 * EPSILON[norm], 8
    defense = Fat(norm=norm, epsilon=epsilon, num_steps=num_steps, alpha=1.0, tau_epochs=(4, 8, 9))
    start = np.clip(IMAGES + epsilon * plain.random_in_ball(norm), 0, 1)
    iterates = plain.ascent(start, epsilon, epsilon / num_steps, num_steps, norm)
    expected, stopped_at = [], []
    for i in range(COUNT):
        wrong = [step for step in range(num_steps) if not plain.right(iterates[step])[i]]
        stopped_at.append(wrong[tau] if len(wrong) > tau else num_steps)
        expected.append(iterates[stopped_at[-1]][i])
    assert len(set(stopped_at)) > 1  # some at once, some on their way or never
    np.testing.assert_allclose(craft(defense, epoch), expected, atol=1e-12)


def test_fat_with_tau_as_large_as_the_steps_is_pgd_at():
    one, other = (method(epsilon=0.2, num_steps=5, alpha=2.0) for method in (lambda **f: Fat(tau=5, **f), Madry))
    np.testing.assert_array_equal(craft(one), craft(other))


@pytest.mark.parametrize("norm", NORMS)
def test_gairat(norm):
    epsilon, num_steps = 3 * EPSILON[norm], 8
    defense = Gairat(norm=norm, epsilon=epsilon, num_steps=num_steps, alpha=1.0, shift=-1.0, burn_in_epochs=3)
    start = np.clip(IMAGES + epsilon * plain.random_in_ball(norm), 0, 1)
    iterates = plain.ascent(start, epsilon, epsilon / num_steps, num_steps, norm)
    kappa = sum(plain.right(iterate).astype(int) for iterate in iterates[:-1])
    crafted = craft(defense)
    np.testing.assert_array_equal(crafted.kappa, kappa)
    assert len(set(kappa)) > 2
    np.testing.assert_allclose(crafted.images, iterates[-1], atol=1e-12)
    for epoch, weights in ((2, np.ones(COUNT)), (3, (np.tanh(-1 + 5 * (1 - 2 * kappa / num_steps)) + 1) / 2)):
        found = loss(defense, crafted, epoch)
        np.testing.assert_allclose(found.weights, weights, rtol=1e-10)
        np.testing.assert_allclose(found.losses, plain.cross_entropy(iterates[-1]), rtol=1e-10)


def test_weights_of_gairat_fall_with_the_steps_that_it_takes():
    weights = np.asarray(geometry_weight(jnp.arange(11.0), 10, 0.0))
    assert np.all(np.diff(weights) < 0) and weights[5] == 0.5 and weights[0] > 0.999 and weights[10] < 0.001


@pytest.mark.parametrize("norm", NORMS)
def test_fast_at_and_n_fgsm(norm):
    epsilon = EPSILON[norm]
    noise = plain.random_in_ball(norm)
    near = np.clip(IMAGES + epsilon * noise, 0, 1)
    moved = near + 1.25 * epsilon * plain.direction(plain.slope(near), norm)
    expected = np.clip(IMAGES + plain.in_ball(moved - IMAGES, epsilon, norm), 0, 1)
    np.testing.assert_allclose(craft(FastAT(norm=norm, epsilon=epsilon)), expected, atol=1e-12)
    far = np.clip(IMAGES + 2 * epsilon * noise, 0, 1)
    expected = np.clip(far + epsilon * plain.direction(plain.slope(far), norm), 0, 1)
    assert plain.length(expected - IMAGES, norm).max() > 1.2 * epsilon  # nothing is projected
    np.testing.assert_allclose(craft(NFGSM(norm=norm, epsilon=epsilon)), expected, atol=1e-12)


def distances(norm) -> np.ndarray:
    """Of right images to the nearest boundary of the linear network in the true class; interior pixels, no box."""
    z, dual = plain.logits(IMAGES), {"linf": 1, "l2": 2}[norm]
    found = np.full(COUNT, np.inf)
    for other in range(plain.CLASSES):
        normal = plain.WEIGHTS[:, other, None] - plain.WEIGHTS[:, LABELS]
        size = np.linalg.norm(normal, ord=dual, axis=0)
        gap = z[np.arange(COUNT), LABELS] - z[:, other]
        found = np.minimum(found, np.where(other == LABELS, np.inf, gap / np.maximum(size, 1e-300)))
    return np.where(plain.right(IMAGES), found, 0)


@pytest.mark.parametrize("norm", NORMS)
def test_mma_finds_the_boundary_from_either_side(norm):
    exact, is_right = distances(norm), plain.right(IMAGES)
    d_max = float(np.sort(exact[is_right])[-2])
    defense = Mma(norm=norm, d_max=d_max, eps_start=d_max / 4, num_steps=20, alpha=4.0, refine_steps=20)
    rows = {"margin": jnp.asarray(np.linspace(0, 1.5 * d_max, COUNT))}
    crafted = craft(defense, rows=rows)
    distance, found = np.asarray(crafted.distance), np.asarray(crafted.found)
    # Never nearer than the boundary is; two classes compete, so the ascent need not point at the nearest point.
    reached = is_right & found
    assert reached.sum() >= 5
    assert np.all(distance[reached] >= exact[reached] - 1e-6) and np.all(distance[reached] <= d_max + 1e-9)
    assert np.median(distance[reached] / exact[reached]) < 1.1
    outputs = np.sort(plain.logits(crafted.images), axis=1)
    np.testing.assert_allclose((outputs[:, -1] - outputs[:, -2])[reached], 0, atol=1e-4)
    far = is_right & (exact > d_max)
    assert far.any() and not found[far].any()

    result = loss(defense, crafted, rows=rows)
    clean, boundary = plain.cross_entropy(IMAGES), plain.cross_entropy(np.asarray(crafted.images))
    own = np.where(~is_right, clean, np.where(found & (distance < d_max), boundary, 0))
    np.testing.assert_allclose(result.losses, clean / 3 + 2 / 3 * own, rtol=1e-10)
    margin = np.where(is_right, np.where(found, distance, d_max), np.minimum(rows["margin"], d_max))
    np.testing.assert_allclose(result.rows["margin"], margin, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_iaat(norm):
    exact, is_right, gamma = distances(norm), plain.right(IMAGES), 0.2 * EPSILON[norm]
    defense = Iaat(norm=norm, eps_start=gamma, eps_max=10.0, gamma=gamma, smoothing=0.25, num_steps=40, alpha=8.0)
    # Radii such that the larger attack, or the one of the radius itself, surely succeeds or surely fails.
    which = np.arange(COUNT) % 3
    margin = np.where(is_right, exact + np.choose(which, [-1.4, -0.4, 0.4]) * gamma, 2 * gamma)
    margin = np.where(margin < 0, 0, margin)
    rows = {"margin": jnp.asarray(margin)}
    crafted = craft(defense, rows=rows)
    # What is certain: below the distance nothing crosses.
    assert np.all(np.asarray(crafted.survives)[is_right & (margin < exact)])
    assert np.all(np.asarray(crafted.survives_larger)[is_right & (margin + gamma < exact)])
    assert not np.asarray(crafted.survives)[~is_right].any()
    assert (~np.asarray(crafted.survives))[is_right & (which == 2)].sum() >= 2
    result = loss(defense, crafted, rows=rows)
    aim = [
        m + gamma if larger else m if own else max(m - gamma, 0)
        for m, own, larger in zip(margin, crafted.survives, crafted.survives_larger, strict=True)
    ]
    np.testing.assert_allclose(result.rows["margin"], 0.75 * margin + 0.25 * np.array(aim), rtol=1e-12)
    attacked, clean = plain.cross_entropy(np.asarray(crafted.images)), plain.cross_entropy(IMAGES)
    np.testing.assert_allclose(result.losses, np.where(is_right, attacked, clean), rtol=1e-10)
    assert np.all(plain.length(np.asarray(crafted.images) - IMAGES, norm) <= margin + 1e-12)


@pytest.mark.parametrize("only_hit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ame(only_hit):
    norm, exact, is_right, delta = "linf", distances("linf"), plain.right(IMAGES), 0.01
    defense = Ame(norm=norm, delta=delta, num_steps=10, only_hit=only_hit, compact=False)
    times = np.arange(COUNT) % 4 + 1
    margin = np.where(np.arange(COUNT) % 2 == 0, 0.5 * np.minimum(exact, 4 * delta), 4 * exact)
    margin = np.where(is_right, margin, times * delta)
    rows = {"margin": jnp.asarray(margin)}
    crafted = craft(defense, rows=rows)
    placed, hits = np.asarray(crafted.boundary.images), np.asarray(crafted.boundary.hits)
    steepness = np.abs(plain.slope(placed)).reshape(COUNT, -1).max(axis=1)
    np.testing.assert_allclose(crafted.steepness, steepness, rtol=1e-10)
    hit, unhit = is_right & (hits > 0), is_right & (hits == 0)
    assert hit.any() and unhit.any()
    counted = 0 if only_hit else steepness
    expected = margin.copy()
    expected[hit] = plain.length(placed - IMAGES, norm)[hit]
    expected[unhit] += (delta * 0.9 ** np.floor(margin / delta + 1e-4) / (1 + counted))[unhit]
    result = loss(defense, crafted, rows=rows)
    np.testing.assert_allclose(result.rows["margin"], expected, rtol=1e-10)
    # Its loss is IMA's.
    ima = IMA(eps_max=1.0, delta=delta, num_steps=10, only_hit=only_hit, compact=False)
    np.testing.assert_array_equal(result.losses, loss(ima, crafted.boundary, rows=rows).losses)


AT_RADIUS = {name: method for name, method in DEFENSES.items() if issubclass(method, AtRadius)}


def images_of(crafted):
    return np.asarray(getattr(crafted, "images", crafted))


@pytest.mark.parametrize(
    "name", [name if name in ("trades", "n_fgsm") else pytest.param(name, marks=pytest.mark.slow) for name in AT_RADIUS]
)
def test_warm_up_and_a_radius_a_sample(name):
    steps = {} if name in ("fast_at", "n_fgsm") else {"num_steps": 3}
    small, whole = (images_of(craft(AT_RADIUS[name](epsilon=epsilon, **steps))) for epsilon in (0.05, 0.2))
    defense = AT_RADIUS[name](epsilon=0.2, warmup_epochs=4, **steps)
    np.testing.assert_allclose(images_of(craft(defense)), small, atol=1e-12)
    radii = [float(defense._radius(plain.batch(epoch))) for epoch in (0, 2, 3, 9)]
    np.testing.assert_allclose(radii, [0.05, 0.15, 0.2, 0.2], rtol=1e-12)
    radii = np.where(np.arange(COUNT) % 2, 0.2, 0.05)
    mixed = images_of(craft(dataclasses.replace(AT_RADIUS[name](**steps), epsilon=jnp.asarray(radii))))
    np.testing.assert_array_equal(mixed[1::2], whole[1::2])
    np.testing.assert_array_equal(mixed[::2], small[::2])


@pytest.mark.parametrize("name", ["trades", "mart"])
def test_a_beta_a_sample(name):
    crafted = craft(DEFENSES[name](num_steps=2, epsilon=0.1))
    found = [
        np.asarray(loss(DEFENSES[name](num_steps=2, epsilon=0.1, beta=beta), crafted).losses)
        for beta in (1.0, 4.0, jnp.asarray(np.where(np.arange(COUNT) % 2, 4.0, 1.0)))
    ]
    np.testing.assert_array_equal(found[2], np.where(np.arange(COUNT) % 2, found[1], found[0]))
    assert np.abs(found[1] - found[0]).max() > 1e-3


def test_a_ceiling_and_a_step_a_sample_of_ima():
    rows = {"margin": jnp.full(COUNT, 0.001)}
    delta, ceiling = (jnp.asarray(np.where(np.arange(COUNT) % 2, *pair)) for pair in ((0.01, 0.02), (0.005, 1.0)))
    defense = dataclasses.replace(IMA(delta=0.01, num_steps=3, compact=False), delta=delta, eps_max=ceiling)
    crafted = craft(defense, rows=rows)
    moved = np.asarray(loss(defense, crafted, rows=rows).rows["margin"])
    unhit = plain.right(IMAGES) & (np.asarray(crafted.hits) == 0)
    assert unhit.sum() > 4
    np.testing.assert_allclose(moved[unhit], np.where(np.arange(COUNT) % 2, 0.005, 0.021)[unhit], rtol=1e-12)
