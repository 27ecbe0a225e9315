"""Each finding is made on a model that has that defect, and none on one that has none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain import attacks
from jax_advtrain.evaluation import check_model as checks
from jax_advtrain.evaluation import results
from jax_advtrain.evaluation.check_model import FINDINGS, check_model
from jax_advtrain.evaluation.masking import masking_warnings
from jax_advtrain.evaluation.records import Record

COUNT, FEATURES, EPSILON = 40, 16, 0.1
TOOTH = EPSILON / 4  # a step of PGD with 10 steps


def straight_through(forward, backward):
    """The value of one thing with the gradient of another."""
    return backward + jax.lax.stop_gradient(forward - backward)


def reversed_gradient(score):
    return straight_through(score, -score)


def back_again(score):
    """Right again where the score is far on the wrong side; the gradient knows nothing of it."""
    turn = 0.55 * EPSILON * FEATURES
    return straight_through(jnp.where(jnp.abs(score) > turn, -score, score), score)


def sawtooth(offsets):
    """Rises over 85% of each tooth, and falls back steeply: small steps never leave a tooth."""
    phase = offsets / TOOTH - jnp.floor(offsets / TOOTH)
    tooth = jnp.where(phase < 0.85, phase / 0.85, (1 - phase) / 0.15) - 0.5
    return offsets + 0.3 * TOOTH * tooth


def as_logits(score):
    return jnp.stack([score, -score], axis=-1)


# Each takes (the score of a linear model, its signs times the offsets from the middle of the box), and gives logits.
MODELS = {
    "clean": lambda score, offsets: as_logits(score),
    "probabilities": lambda score, offsets: jax.nn.softmax(as_logits(score)),
    "batch_dependent": lambda score, offsets: as_logits(score * (1 + 0.1 * jnp.std(score))),
    "zero_gradients": lambda score, offsets: as_logits(jnp.round(score * 20) / 20),
    "nonfinite_gradients": lambda score, offsets: as_logits(score + jnp.sqrt(jnp.sum(0 * offsets, axis=1))),
    "loss_does_not_rise": lambda score, offsets: as_logits(reversed_gradient(score)),
    "more_steps_do_not_help": lambda score, offsets: as_logits(jnp.sum(sawtooth(offsets), axis=1)),
    "accuracy_rises": lambda score, offsets: as_logits(back_again(score)),
}
# Defects that bring another finding with them.
ALSO = {"square_beats_gradients": "loss_does_not_rise", "large_radius_does_not_win": "loss_does_not_rise"}


def apply(signs, kind, images):
    """All models in one, so that the checks are compiled once."""
    offsets = (images - 0.5) * signs
    return jax.lax.switch(kind, list(MODELS.values()), jnp.sum(offsets, axis=1), offsets)


SIGNS = np.random.default_rng(0).choice([-1.0, 1.0], FEATURES).astype(np.float32)


def model(name: str) -> jax.tree_util.Partial:
    return jax.tree_util.Partial(apply, jnp.asarray(SIGNS), jnp.int32(list(MODELS).index(name)))


@pytest.fixture(scope="module")
def samples():
    """Images whose distance to the linear model's boundary is up to 0.45 of the radius; the labels are right."""
    random = np.random.default_rng(1)
    lead = random.uniform(0.3, 0.45, COUNT) * random.choice([-1, 1], COUNT)
    noise = random.uniform(-0.02, 0.02, (COUNT, FEATURES))
    noise -= (noise * SIGNS).mean(axis=1, keepdims=True) * SIGNS
    images = 0.5 + EPSILON * lead[:, None] * SIGNS + noise
    return images.astype(np.float32), (lead < 0).astype(np.int32)


def names(findings) -> list[str]:
    return [finding.name for finding in findings]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FINDINGS if name != "stochastic"])
def test_each_finding_is_made_where_it_is_due(samples, name):
    findings = check_model(model(ALSO.get(name, name)), *samples, epsilon=EPSILON)
    assert name in names(findings), findings
    (found,) = [finding for finding in findings if finding.name == name]
    assert 2 <= found.count <= COUNT and "\n" not in found.message
    assert str(found.count) in found.message
    assert set(names(findings)) <= set(FINDINGS)


@pytest.mark.slow
def test_no_finding_on_a_model_without_defects(samples):
    assert check_model(model("clean"), *samples, epsilon=EPSILON) == []
    # A wrong label is no defect of the model, nor a batch that does not divide the samples.
    images, labels = samples
    labels = np.where(np.arange(COUNT) % 7 == 0, 1 - labels, labels)
    assert check_model(model("clean"), images, labels, epsilon=EPSILON, seed=1, batch_size=COUNT) == []


def test_a_stochastic_model(samples):
    images, _ = samples
    offsets = (images - 0.5) * SIGNS

    def noisy(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key))(keys)
        return as_logits(jnp.sum((images - 0.5) * SIGNS, axis=1) + noise)

    (found,) = checks._draws(attacks.stochastic(noisy), images)
    assert found.name == "stochastic" and found.count == COUNT and "eot" in found.message
    one = checks._one_draw(attacks.stochastic(noisy))
    np.testing.assert_array_equal(one(jnp.asarray(images)), one(jnp.asarray(images)))
    np.testing.assert_allclose(
        one(jnp.asarray(images))[:, 0] - offsets.sum(axis=1), one(images[:1])[0, 0] - offsets[0].sum(), atol=1e-5
    )

    random = np.random.default_rng(0)

    def hidden(images):
        noise = jax.pure_callback(
            lambda images: random.normal(size=len(images)).astype(np.float32),
            jax.ShapeDtypeStruct(images.shape[:1], np.float32),
            images,
        )
        return as_logits(jnp.sum(images, axis=1) + noise)

    (found,) = checks._outputs(jax.tree_util.Partial(hidden), images, 256)
    assert found.name == "stochastic" and found.count == COUNT


def test_one_logit_that_is_a_probability(samples):
    (found,) = checks._outputs(jax.tree_util.Partial(lambda images: jax.nn.sigmoid(images.sum(axis=1))), samples[0], 16)
    assert found.name == "probabilities" and "[0, 1]" in found.message
    assert checks._outputs(jax.tree_util.Partial(lambda images: images.sum(axis=1)), samples[0], 16) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (dict(images=np.full((2, FEATURES), 2.0, np.float32)), "images range over [2, 2]"),
        (dict(labels=np.array([0, -1])), "labels range over [-1, 0]"),
        (dict(norm="l3"), "norm is 'l3'"),
        (dict(epsilon=0.0), "epsilon is 0.0; give finite numbers above 0"),
        (dict(images=np.zeros((0, FEATURES), np.float32), labels=np.zeros(0, int)), "there are no samples"),
    ],
)
def test_refused(given, expected):
    settings = dict(images=np.full((2, FEATURES), 0.5, np.float32), labels=np.array([0, 1]), epsilon=0.1) | given
    with pytest.raises(ValueError) as caught:
        check_model(model("clean"), settings.pop("images"), settings.pop("labels"), **settings)
    assert expected in str(caught.value)


# --- What records alone tell ---


def record(attack: str, correct: int, epsilon: float = 0.1, **settings) -> Record:
    return Record(attack, None if attack == "clean" else "linf", epsilon, "test", 1000, correct, settings=settings)


def test_records_on_which_square_is_the_strongest():
    gradients = [record("pgd-20-ce", 490, loss="ce"), record("apgd-100-dlr", 480, loss="dlr")]
    assert masking_warnings([*gradients, record("square-5000", 478)]) == []
    (line,) = masking_warnings([*gradients, record("square-5000", 477), record("uniform-noise", 900)])
    assert "square-5000, which sees no gradients, leaves 47.7% right" in line and "apgd-100-dlr) 48.0%" in line
    # AutoAttack holds Square itself, and noise climbs nothing.
    assert masking_warnings([record("square-5000", 477), record("autoattack-standard", 480)]) == []
    assert masking_warnings([record("square-5000", 300), *gradients[1:], record("pgd-20-ce", 480, epsilon=0.2)]) != []


def test_records_on_which_more_steps_do_not_help():
    def pgd(num_steps, correct, **settings):
        return record(f"pgd-{num_steps}-ce", correct, name="pgd", num_steps=num_steps, loss="ce", **settings)

    assert masking_warnings([pgd(10, 500), pgd(100, 505)]) == []
    (line,) = masking_warnings([pgd(100, 506), pgd(10, 500)])
    assert "pgd-10-ce leaves 50.0% right, pgd-100-ce with more steps 50.6%" in line
    assert masking_warnings([pgd(10, 500), pgd(100, 515, restarts=2)]) == []  # another attack


def test_findings_stand_in_results_json(tmp_path):
    findings = [checks.Finding("zero_gradients", 7, "the gradient is zero")]
    data = dict(name="toy", split="test", count=1000)
    records = [dataclasses.replace(record("clean", 900), epsilon=0.0)]
    results.write_results(tmp_path, model={}, data=data, records=records, warnings=checks.lines(findings))
    assert results.read_results(tmp_path)["warnings"] == ["check_model, zero_gradients (7): the gradient is zero"]
