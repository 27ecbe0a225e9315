"""Every vector of the reference's IMA loss: losses at each position of beta, gradients, hits, placed images.

float32 in the ordinary process, where the file has float32 vectors; the last test runs this file again in a process of
its own with JAX_ENABLE_X64=1, where everything is float64 and agrees within 1e-9. `-rP` prints the largest differences.
"""

import dataclasses
import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_networks import FORWARD, Vectors

from jax_advtrain import attacks, tasks
from jax_advtrain.defenses import IMA, Batch, Model

X64 = jax.config.read("jax_enable_x64")
DTYPE, TAG, OTHER = (jnp.float64, "f64", "f32") if X64 else (jnp.float32, "f32", "f64")
ATOL = 1e-9 if X64 else 1e-4
NETWORKS, NORMS, POSITIONS = ("mlp", "cnn"), ("linf", "l2"), (0, 1, 2, 3)
only_float64 = pytest.mark.skipif(not X64, reason="float64 vectors: the float64 process compares them")
PLACEMENTS = {0: "none", 2: "outside", 3: "inside"}


@dataclasses.dataclass(frozen=True)
class Started(IMA):
    """IMA from the start images that the file gives in place of noise; here `unit_start` holds them."""

    def _start(self, batch, margin):
        return batch.unit_start


def ima(**settings) -> Started:
    """With a ceiling above all margins; the compacted bisection is compared in the trajectories."""
    return Started(**{"eps_max": 3.0, "compact": False, **settings})


@pytest.fixture(scope="module", autouse=True)
def float64_process(reference_dir):
    """This file in float64, started at once so that it runs beside the float32 tests."""
    if X64:
        yield None
        return
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-rP", "-p", "no:cacheprovider", "-k", "not own_process"]
    process = subprocess.Popen(
        command,
        # Without the costly passes of LLVM: half the time to compile.
        env=os.environ | {"JAX_ENABLE_X64": "1", "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def models(reference_dir) -> Vectors:
    return Vectors(reference_dir, "models")


@pytest.fixture(scope="module")
def vectors(reference_dir) -> Vectors:
    return Vectors(reference_dir, "ima_loss")


@pytest.fixture(scope="module", autouse=True)
def nothing_unread(vectors):
    """Fails where a vector was not asked for by any test; the float64 process reads those of no dtype too."""
    yield
    unread = vectors.unread(OTHER)
    assert not (unread if X64 else {key for key in unread if TAG in key.split("_")})


def weights(models, name) -> dict:
    keys = [key for key in models.names() if key.startswith(f"{name}_") and "logits" not in key]
    return {key[len(name) + 1 :]: jnp.asarray(models[key], DTYPE) for key in keys}


def make_batch(models, vectors, norm, binary=False) -> tuple[Batch, dict]:
    labels = jnp.asarray(models["y"], jnp.int32)
    batch = Batch(
        images=jnp.asarray(models["x"], DTYPE),
        labels=labels % 2 if binary else labels,
        keys=jax.random.split(jax.random.key(0), len(labels)),
        valid=jnp.ones(len(labels), bool),
        epoch=jnp.int32(0),
        unit_start=jnp.asarray(vectors[f"xstart_{norm}"], DTYPE),
    )
    return batch, {"margin": jnp.asarray(vectors[f"margin_{norm}"], DTYPE)}


def make_model(name, params) -> Model:
    logits_fn = jax.tree_util.Partial(FORWARD[name], params)
    return Model(
        task=tasks.BINARY if name == "bin" else tasks.CLASSIFICATION,
        logits_fn=logits_fn,
        batch_logits_fn=logits_fn,
        forward=lambda stats, images, mask: (FORWARD[name](params, images), stats),
    )


@partial(jax.jit, static_argnames=("defense", "name"))
def craft(defense, name, params, batch, rows):
    return defense.craft(make_model(name, params), batch, rows, {})


@partial(jax.jit, static_argnames=("defenses", "name"))
def losses_and_gradients(defenses, name, params, batch, crafted, rows):
    """Of each defense on the same crafted images: loss a sample, gradient of their mean, metrics."""

    def mean(params, defense):
        found = defense.loss(make_model(name, params), {}, batch, crafted, rows, {})
        return jnp.mean(found.losses), (found.losses, found.metrics)

    return [jax.value_and_grad(mean, has_aux=True)(params, defense) for defense in defenses]


class Compared:
    """Largest differences by what was compared; in float32 one sample in a hundred may take another path."""

    def __init__(self, vectors):
        self.vectors, self.largest = vectors, {}

    def values(self, key, ours, what):
        theirs = self.vectors[key]
        assert ours.shape == theirs.shape, key
        difference = np.abs(np.asarray(ours) - theirs)
        self._note(what, difference)
        assert difference.max() <= ATOL, (key, difference.max())

    def samples(self, key, ours, what, atol=0.0):
        theirs = self.vectors[key]
        assert ours.shape == theirs.shape, key
        difference = np.abs(np.asarray(ours) - theirs).reshape(len(theirs), -1).max(axis=1)
        self._note(what, difference[difference <= atol])
        assert np.sum(difference > atol) <= (0 if X64 else 0.01 * len(theirs)), (key, difference.max())

    def crafted(self, prefix, found, right, enters):
        """Hits of all samples, and placed images of those that enter the loss."""
        self.samples(f"{prefix}_advc", found.hits, "hits")
        rows = self.vectors[f"{prefix}_idx_n"]
        np.testing.assert_array_equal(np.flatnonzero(enters), rows)
        assert right[rows].all()
        self.samples(f"{prefix}_xn", found.images[rows], "images", ATOL)
        return rows

    def _note(self, what, difference):
        self.largest[what] = max(self.largest.get(what, 0.0), float(difference.max(initial=0)))

    def show(self, title):
        print(f"{title} {TAG}: " + ", ".join(f"{what} {value:.2g}" for what, value in self.largest.items()))


@pytest.mark.parametrize(("name", "norm"), itertools.product(NETWORKS, NORMS))
def test_losses_gradients_and_images(models, vectors, name, norm):
    compared = Compared(vectors)
    params, (batch, rows) = weights(models, name), make_batch(models, vectors, norm)
    # With `refine_unhit` the images of samples that were hit are the same, so one ascent serves both.
    both = craft(ima(norm=norm, refine_unhit=True), name, params, batch, rows)
    for p, only_hit in enumerate((False, True)):
        crafted = craft(ima(norm=norm), name, params, batch, rows) if only_hit and X64 else both
        # The loss half knows no norm: one compilation serves both.
        defenses = tuple(ima(beta_position=position, only_hit=only_hit) for position in POSITIONS)
        found = losses_and_gradients(defenses, name, params, batch, crafted, rows)
        right = np.asarray(found[0][0][1][1]["clean_accuracy"]) == 1
        prefix = f"{name}_{norm}_p{p}_{TAG}"
        np.testing.assert_array_equal(right, vectors[f"{prefix}_yp"] == models["y"])
        entering = compared.crafted(prefix, crafted, right, right & (crafted.hits > 0) if only_hit else right)
        # The placed images lie on the boundary; a prediction there is a coin flip in float32.
        predicted = attacks.predict(FORWARD[name](params, crafted.images[entering]))
        theirs = vectors[f"{prefix}_ypn"]
        assert np.sum(np.asarray(predicted) != theirs) <= (0 if X64 else len(theirs))

        losses = []
        for position, ((loss, _), gradient) in zip(POSITIONS, found, strict=True):
            key = f"{name}_{norm}_p{p}_b{position}_{TAG}"
            losses.append(float(loss))
            compared_loss = abs(losses[-1] - vectors[f"{key}_losses"][0])
            assert compared_loss <= ATOL, (key, compared_loss)
            compared._note("losses", np.array([compared_loss]))
            for weight, values in gradient.items():
                if f"{key}_grad_{weight}" in vectors.names():
                    compared.values(f"{key}_grad_{weight}", values, "gradients")
        # The four totals hold the three parts: b2 - b1 = L1 / 2, b1 - b3 = L2 / 2, b3 = (L1 + L3) / 2.
        part1, part2 = 2 * (losses[2] - losses[1]), 2 * (losses[1] - losses[3])
        parts = np.array([part1, part2, 2 * losses[3] - part1])
        difference = np.abs(parts - vectors[f"{name}_{norm}_p{p}_b1_{TAG}_losses"][1:])
        assert difference.max() <= 4 * ATOL, difference
        compared._note("parts", difference)
    compared.show(f"{name} {norm}")


@only_float64
@pytest.mark.parametrize(("name", "norm"), itertools.product(NETWORKS, NORMS))
def test_placements_with_recorded_ends(models, vectors, name, norm):
    """stop 0, 2, 3 with cross entropy, beta 0.25 and neither end replaced."""
    compared = Compared(vectors)
    params, (batch, rows) = weights(models, name), make_batch(models, vectors, norm)
    for stop, placement in PLACEMENTS.items():
        defense = ima(
            norm=norm,
            attack_loss="ce",
            beta=0.25,
            placement=placement,
            inside_is_clean=False,
            outside_is_final=False,
        )
        crafted = craft(defense, name, params, batch, rows)
        mixed = (ima(beta=0.25),)
        [((loss, (_, metrics)), _)] = losses_and_gradients(mixed, name, params, batch, crafted, rows)
        right = np.asarray(metrics["clean_accuracy"]) == 1
        prefix = f"{name}_{norm}_s{stop}_ce_beta025"
        compared.crafted(prefix, crafted, right, right & (crafted.hits > 0))
        compared.values(f"{prefix}_losses", np.append(loss, vectors[f"{prefix}_losses"][1:]), "losses")
    compared.show(f"{name} {norm} placements")


@only_float64
@pytest.mark.parametrize(("name", "norm"), itertools.product(NETWORKS, NORMS))
def test_no_adversarial_part(models, vectors, name, norm):
    """beta 0, and batches without one right sample.

    In the latter the reference does not attack and tells 0 hits, ours attacks and counts them: hits of wrong samples
    enter neither the loss nor the margins, so only the number told differs, and it is not compared.
    """
    compared = Compared(vectors)
    params, (batch, rows) = weights(models, name), make_batch(models, vectors, norm)
    without = ima(beta=0.0)
    assert without.craft(make_model(name, params), batch, rows, {}) is None
    [((loss, (_, metrics)), _)] = losses_and_gradients((without,), name, params, batch, None, rows)
    key = f"{name}_{norm}_beta0"
    compared.values(f"{key}_losses", np.append(loss, vectors[f"{key}_losses"][1:]), "losses")
    np.testing.assert_array_equal(metrics["attacked_accuracy"], metrics["clean_accuracy"])  # hits: none
    assert not vectors[f"{key}_advc"].any() and not len(vectors[f"{key}_idx_n"])

    key = f"{name}_{norm}_allwrong"
    part = vectors[f"{key}_idx"]
    defense = ima(norm=norm, num_steps=3)
    batch, rows = jax.tree.map(
        lambda values: values[part] if values.ndim else values, (batch, rows)
    )  # the epoch is no row
    crafted = craft(defense, name, params, batch, rows)
    [((loss, (_, metrics)), _)] = losses_and_gradients((ima(),), name, params, batch, crafted, rows)
    compared.values(f"{key}_losses", np.append(loss, vectors[f"{key}_losses"][1:]), "losses")
    assert not metrics["clean_accuracy"].any()
    for metric in ("margin_expanding", "margin_shrinking", "margin_abs_change"):
        assert not metrics[metric].any()
    assert not vectors[f"{key}_advc"].any() and not len(vectors[f"{key}_idx_n"])
    assert not vectors[f"{key}_losses"][2:].any()
    compared.show(f"{name} {norm} no adversarial part")


@only_float64
@pytest.mark.parametrize("norm", NORMS)
def test_one_logit(models, vectors, norm):
    compared = Compared(vectors)
    params, (batch, rows) = weights(models, "bin"), make_batch(models, vectors, norm, binary=True)
    defense = ima(norm=norm, attack_loss="bce", compact=True)
    crafted = craft(defense, "bin", params, batch, rows)
    [((loss, (_, metrics)), gradient)] = losses_and_gradients((ima(),), "bin", params, batch, crafted, rows)
    right = np.asarray(metrics["clean_accuracy"]) == 1
    compared.crafted(f"bin_{norm}", crafted, right, right & (crafted.hits > 0))
    compared.values(f"bin_{norm}_losses", np.append(loss, vectors[f"bin_{norm}_losses"][1:]), "losses")
    for weight in ("w0", "w1"):
        compared.values(f"bin_{norm}_grad_{weight}", gradient[weight], "gradients")
    compared.show(f"bin {norm}")


@pytest.mark.skipif(X64, reason="this is the float64 process")
def test_float64_in_its_own_process(float64_process):
    output, _ = float64_process.communicate(timeout=500)
    print(output)
    assert float64_process.returncode == 0, output
    assert "14 passed" in output
    assert "skipped" not in output
