"""Every vector of the reference's norms, losses, pgd, ifgsm and ima_attack files.

float32 in the ordinary process; the last test runs this file again in a process of its own with JAX_ENABLE_X64=1,
where everything is float64 and agrees within 1e-9. `-rP` prints the largest differences.
"""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_networks import Vectors, network

from jax_advtrain import attacks

X64 = jax.config.read("jax_enable_x64")
DTYPE, TAG, OTHER = (jnp.float64, "f64", "f32") if X64 else (jnp.float32, "f32", "f64")
NETWORKS, NORMS = ("mlp", "cnn"), ("linf", "l2")
KEY = jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def float64_process(reference_dir):
    """This file in float64, started at once so that it runs beside the float32 tests."""
    if X64:
        yield None
        return
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-rP", "-p", "no:cacheprovider", "-k", "not own_process"]
    process = subprocess.Popen(
        command,
        env=os.environ | {"JAX_ENABLE_X64": "1"},
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
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
def images(models):
    return jnp.asarray(models["x"], DTYPE)


@pytest.fixture(scope="module")
def labels(models):
    return jnp.asarray(models["y"])


class Comparison:
    """Compares with a file's vectors; float64 to 1e-9 everywhere, float32 to `atol` on 99 % of all samples.

    In float32 a sample may legally take another path: the sign of a gradient near zero, a label on the boundary.
    """

    def __init__(self, vectors: Vectors, atol: float):
        self.vectors, self.atol = vectors, 1e-9 if X64 else atol
        self.largest, self.samples, self.differing = 0.0, 0, 0

    def values(self, key, ours, rows=slice(None)):
        assert ours.dtype == DTYPE, key
        theirs = self.vectors[key]
        assert ours.shape == theirs.shape, key
        difference = np.abs(np.asarray(ours) - theirs) / np.maximum(1, np.abs(theirs))
        self._count(key, difference[rows].reshape(len(difference[rows]), -1).max(axis=1))

    def counts(self, key, ours):
        self._count(key, np.abs(np.asarray(ours) - self.vectors[key]))

    def _count(self, key, difference):
        differing = int(np.sum(difference > self.atol))
        assert differing == 0 if X64 else differing <= 1, (key, difference.max())
        self.largest = max(self.largest, float(difference[difference <= self.atol].max(initial=0)))
        self.samples += len(difference)
        self.differing += differing

    def finish(self, file):
        print(f"{file} {TAG}: largest {self.largest:.2g}; {self.differing} of {self.samples} samples differ")
        assert self.differing <= 0.01 * self.samples
        assert not self.vectors.unread(OTHER)


def test_networks_give_the_reference_logits(models, images):
    compared = Comparison(models, atol=1e-5)
    for name in ("mlp", "cnn", "bin"):
        compared.values(f"{name}_logits_{TAG}", jax.jit(network(models, name, DTYPE))(images))
    print(f"models {TAG}: largest {compared.largest:.2g}")


def test_norms(reference_dir, images):
    vectors = Vectors(reference_dir, "norms")
    compared = Comparison(vectors, atol=2e-6)
    noise, unit_noise = jnp.asarray(vectors["noise"], DTYPE), jnp.asarray(vectors["noise_init_u"], DTYPE)

    for norm in NORMS:
        radius = jnp.asarray(vectors[f"radius_{norm}"], DTYPE)
        scalar = jnp.asarray(vectors[f"scalar_{norm}"], DTYPE)
        compared.values(f"clip_{norm}_persample_{TAG}", attacks.norms.clip_to_ball(noise, radius, norm))
        compared.values(f"clip_{norm}_scalar_{TAG}", attacks.norms.clip_to_ball(noise, scalar, norm))
        compared.values(f"normgrad_{norm}_{TAG}", attacks.norms.steepest_ascent(noise, norm))
        compared.values(f"normnoise_{norm}_{TAG}", attacks.norms.unit_length(noise, norm))
        added = attacks.norms.project(images, noise, radius, norm)
        compared.values(f"addclip_{norm}_x_{TAG}", added)
        compared.values(f"addclip_{norm}_noise_{TAG}", added - images)
        # The reference's radius of a random start: the larger of two tensors or two scalars, else the smaller.
        starts = {
            "tt": jnp.maximum(radius, jnp.maximum(radius - jnp.asarray(0.3, DTYPE), 1e-3)),
            "ts": jnp.minimum(radius, scalar),
            "st": jnp.minimum(scalar, radius),
            "ss": 2 * scalar,
        }
        for kind, half_width in starts.items():
            started = attacks.norms.clipped_box(unit_noise, half_width, norm)
            compared.values(f"noise_init_{norm}_{kind}_{TAG}", started)
    compared.finish("norms")


def test_losses_and_their_gradients(reference_dir):
    vectors = Vectors(reference_dir, "losses")
    compared = Comparison(vectors, atol=5e-6)
    multi = jnp.asarray(vectors["z"], DTYPE), jnp.asarray(vectors["y"])
    binary = jnp.asarray(vectors["zbin"], DTYPE), jnp.asarray(vectors["ybin"])
    problems = {"ce": multi, "lm": multi, "slm": multi, "bce": binary, "lmb": binary}

    @jax.jit
    def values_and_gradients(problems):
        def summed(logits, labels, loss):
            values = loss(logits, labels)
            return jnp.sum(values), values

        both = {}
        for name, (logits, labels) in problems.items():
            loss = attacks.losses.as_loss(name)
            both[name] = jax.grad(summed, has_aux=True)(logits, labels, loss)
        return both

    for name, (gradient, values) in values_and_gradients(problems).items():
        compared.values(f"{name}_{TAG}", values)
        # Row 0 holds a tie, where the subgradient of the maximum is free.
        compared.values(f"{name}_grad_{TAG}", gradient, rows=slice(1, None) if name == "lm" else slice(None))
    compared.finish("losses")


def test_pgd(reference_dir, models, images, labels):
    vectors = Vectors(reference_dir, "pgd")
    compared = Comparison(vectors, atol=1e-4)
    full = jnp.ones(len(images), DTYPE)

    @jax.jit
    def run(attack, logits_fn, labels, targets=None):
        return attack(KEY, logits_fn, images, labels, targets=targets)

    @jax.jit
    def some_steps(attack, logits_fn, labels, num_steps):
        state = attack.init(KEY, logits_fn, images, labels)
        return jax.lax.fori_loop(0, num_steps, lambda _, state: attack.step(logits_fn, state), state).iterate

    for norm, name in itertools.product(NORMS, NETWORKS):
        logits_fn = network(models, name, DTYPE)
        epsilon, step = full * float(vectors[f"eps_{norm}"]), full * float(vectors[f"step_{norm}"])

        def attack(loss, epsilon=epsilon, step=step, norm=norm):
            return attacks.pgd(norm=norm, epsilon=epsilon, step_size=step, num_steps=20, loss=loss, start="clean")

        for loss, lengths in {"ce": (1, 5, 20), "slm": (1, 5, 20), "lm": (20,)}.items():
            for num_steps in lengths:
                ours = some_steps(attack(loss), logits_fn, labels, num_steps)
                compared.values(f"{name}_{norm}_{loss}_n{num_steps}_{TAG}", ours)
        radius = jnp.asarray(vectors[f"radius_{norm}"], DTYPE)
        ours = some_steps(attack("slm", radius, 4 * radius / 20), logits_fn, labels, 20)
        compared.values(f"{name}_{norm}_slm_persample_n20_{TAG}", ours)
        if X64:
            ours = run(attack("ce"), logits_fn, labels, targets=(labels + 1) % 10)
            compared.values(f"{name}_{norm}_ce_targeted_n20_f64", ours)
            if name == "mlp":
                for loss in ("bce", "lmb"):
                    ours = run(attack(loss), network(models, "bin", DTYPE), labels % 2)
                    compared.values(f"bin_{norm}_{loss}_n20_f64", ours)
    compared.finish("pgd")


def test_ifgsm(reference_dir, models, images, labels):
    vectors = Vectors(reference_dir, "ifgsm")
    compared = Comparison(vectors, atol=1e-4)

    @jax.jit
    def some_steps(attack, logits_fn, labels, num_steps):
        state = attack.init(KEY, logits_fn, images, labels)
        return jax.lax.fori_loop(0, num_steps, lambda _, state: attack.step(logits_fn, state), state).iterate

    for name in ("mlp", "cnn", "bin"):
        loss, truth = ("bce", labels % 2) if name == "bin" else ("ce", labels)
        logits_fn = network(models, name, DTYPE)
        for setting, step_size, num_steps in (
            ("iter5_step002", 0.02, 5),
            ("noise003_default", 1 / 255, attacks.ifgsm_steps(0.03)),
        ):
            attack = attacks.ifgsm(epsilon=0.03, step_size=step_size, loss=loss, project=False)
            compared.values(f"{name}_{setting}_{TAG}", some_steps(attack, logits_fn, truth, num_steps))
    for key in [key for key in vectors.names() if key.startswith("default_iters_")]:
        assert attacks.ifgsm_steps(float(key.rsplit("_", 1)[1])) == vectors[key]
    compared.finish("ifgsm")


PLACEMENTS = ("none", "boundary", "outside", "inside")  # the reference's stop = 0, 1, 2, 3


def placements(ascent, refine_steps):
    """Every setting of the reference by its part of the key."""
    switches = [(0, False, False)] + [(s, *x) for s in (1, 2, 3) for x in itertools.product((False, True), repeat=2)]
    return {
        f"s{stop}_x1{int(clean)}_x2{int(final)}": attacks.on_boundary(
            ascent,
            refine_steps=refine_steps,
            placement=PLACEMENTS[stop],
            inside_is_clean=clean,
            outside_is_final=final,
            refine_unhit=True,
        )
        for stop, clean, final in switches
    }


def test_ima_attack(reference_dir, models, images, labels):
    vectors = Vectors(reference_dir, "ima_attack")
    compared = Comparison(vectors, atol=1e-4)
    steps, refine, alpha = (int(vectors["max_iter"]), int(vectors["refine_Xn_max_iter"]), float(vectors["alpha"]))

    @jax.jit
    def place(settings, logits_fn, start):
        # The ascent is the same for all placements, so it runs once.
        first = next(iter(settings.values()))
        state = first.init(KEY, logits_fn, images, labels, start=start)
        state = jax.lax.fori_loop(0, first.num_steps, lambda _, state: first.step(logits_fn, state), state)
        return {name: attack.result(logits_fn, state) for name, attack in settings.items()}

    @jax.jit
    def run(attack, logits_fn, images, labels, targets=None):
        return attack(KEY, logits_fn, images, labels, targets=targets, start=images)

    for norm, name in itertools.product(NORMS, NETWORKS):
        logits_fn = network(models, name, DTYPE)
        margin = jnp.asarray(vectors[f"margin_{norm}"], DTYPE)
        ascent = attacks.pgd(norm=norm, epsilon=margin, alpha=alpha, num_steps=steps, loss="slm")
        start = jnp.asarray(vectors[f"xstart_{norm}"], DTYPE)
        for setting, found in place(placements(ascent, refine), logits_fn, start).items():
            compared.values(f"{name}_{norm}_{setting}_{TAG}_xn", found.images)
            compared.counts(f"{name}_{norm}_{setting}_{TAG}_advc", found.hits)
        rows = vectors[f"{name}_{norm}_noadv_idx"]
        if X64:
            tiny = attacks.pgd(norm=norm, epsilon=1e-3, alpha=alpha, num_steps=steps, loss="slm")
            found = run(placements(tiny, refine)["s1_x11_x21"], logits_fn, images[rows], labels[rows])
            compared.values(f"{name}_{norm}_noadv_f64_xn", found.images)
            compared.counts(f"{name}_{norm}_noadv_f64_advc", found.hits)
            targeted = attacks.pgd(norm=norm, epsilon=margin, alpha=alpha, num_steps=steps, loss="ce")
            attack = placements(targeted, refine)["s0_x10_x20"]
            found = run(attack, logits_fn, images, labels, targets=(labels + 1) % 10)
            compared.values(f"{name}_{norm}_targeted_s0_f64_xn", found.images)
            compared.counts(f"{name}_{norm}_targeted_s0_f64_advc", found.hits)
    compared.finish("ima_attack")


@pytest.mark.slow
@pytest.mark.skipif(X64, reason="this is the float64 process")
def test_float64_in_its_own_process(float64_process):
    output, _ = float64_process.communicate(timeout=300)
    print(output)
    assert float64_process.returncode == 0, output
    assert "6 passed" in output
    assert "skipped" not in output
