"""TRADES against the vectors of the IMA authors' code: attacked images, losses, gradients, in float64 to 1e-9.

In float32 the first gradients of the divergence are near zero and their signs flip, so there only losses are compared.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_networks import FORWARD, Vectors

from jax_advtrain import attacks, tasks
from jax_advtrain.defenses import Batch, Model, Trades

NAMES, NORMS = ("mlp", "cnn", "bin"), ("linf", "l2")
# The others run in CI's second step.
QUICK = {("mlp", "l2", "f64"), ("bin", "linf", "f64"), ("mlp", "linf", "f32")}


@pytest.fixture(scope="module")
def models(reference_dir) -> Vectors:
    return Vectors(reference_dir, "models")


@pytest.fixture(scope="module")
def vectors(reference_dir) -> Vectors:
    return Vectors(reference_dir, "trades")


@pytest.fixture(scope="module")
def settings(reference_dir):
    return Vectors(reference_dir, "pgd")


def make_model(name, params) -> Model:
    """The one-logit network as the authors see it: KL between the two-class logits [-z, z], loss on z itself."""

    def outputs(images):
        logits = FORWARD[name](params, images)
        return jnp.stack([-logits, logits], axis=-1) if name == "bin" else logits

    def loss(outputs, labels):
        return attacks.binary_cross_entropy(outputs[:, 1], labels) if name == "bin" else task.loss(outputs, labels)

    task = tasks.CLASSIFICATION
    fixed = jax.tree_util.Partial(outputs)
    return Model(task._replace(loss=loss), fixed, fixed, lambda stats, images, mask: (outputs(images), stats))


def craft_and_descend(defense, name, params, batch):
    crafted = defense.craft(make_model(name, params), batch, {}, {})

    def mean(params):
        found = defense.loss(make_model(name, params), {}, batch, crafted, {}, {})
        return jnp.mean(found.losses), found

    (loss, found), gradient = jax.value_and_grad(mean, has_aux=True)(params)
    return crafted, loss, jnp.mean(found.metrics["divergence"]), gradient


@pytest.mark.parametrize(
    ("name", "norm", "tag"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(NAMES, NORMS, ("f64", "f32"))
    ],
)
def test_trades_is_the_reference(models, vectors, settings, name, norm, tag):
    with jax.enable_x64(tag == "f64"):
        dtype = jnp.float64 if tag == "f64" else jnp.float32
        keys = [key for key in models.names() if key.startswith(f"{name}_") and "logits" not in key]
        params = {key[len(name) + 1 :]: jnp.asarray(models[key], dtype) for key in keys}
        labels = jnp.asarray(models["y"], jnp.int32)
        batch = Batch(
            images=jnp.asarray(models["x"], dtype),
            labels=labels % 2 if name == "bin" else labels,
            keys=jax.random.split(jax.random.key(0), len(labels)),
            valid=jnp.ones(len(labels), bool),
            epoch=jnp.int32(0),
            unit_start=jnp.asarray(vectors["gauss"], dtype),
        )
        epsilon, step = float(settings[f"eps_{norm}"]), float(settings[f"step_{norm}"])
        defense = Trades(norm=norm, epsilon=epsilon, num_steps=10, alpha=10 * step / epsilon, beta=6.0)
        crafted, loss, divergence, gradient = jax.jit(craft_and_descend, static_argnums=(0, 1))(
            defense, name, params, batch
        )
        prefix = f"{name}_{norm}_{tag}"
        total, clean_part, divergence_part = vectors[f"{prefix}_losses"]
        atol = 1e-9 if tag == "f64" else 5e-3
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss, total, rtol=0, atol=atol)
        np.testing.assert_allclose(loss - 6 * divergence, clean_part, rtol=0, atol=atol)
        np.testing.assert_allclose(divergence, divergence_part, rtol=0, atol=atol)
        if tag == "f64":
            np.testing.assert_allclose(crafted, vectors[f"{prefix}_xn"], rtol=0, atol=atol)
            for key in vectors.names():
                if key.startswith(f"{prefix}_grad_"):
                    weight = key.removeprefix(f"{prefix}_grad_")
                    np.testing.assert_allclose(gradient[weight], vectors[key], rtol=0, atol=atol)


@pytest.mark.parametrize("tag", ["f64", "f32"])
def test_the_divergence_is_the_reference(vectors, tag):
    with jax.enable_x64(tag == "f64"):
        dtype = jnp.float64 if tag == "f64" else jnp.float32
        outputs, reference = (jnp.asarray(vectors[key], dtype) for key in ("kl_zn", "kl_z"))
        found = attacks.kl_divergence(outputs, reference)
        rtol = 1e-12 if tag == "f64" else 1e-5
        np.testing.assert_allclose(jnp.sum(found), vectors["kl_sum_f64"], rtol=rtol)
        np.testing.assert_allclose(jnp.mean(found), vectors["kl_batchmean_f64"], rtol=rtol)
