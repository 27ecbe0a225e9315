"""Temperature-PGD over T on a cosine classifier and on a TRADES model, beside PGD with as many runs.

    python benchmarks/temperature.py --data_dir=TFDS [--num_train=10000] [--epochs=6]

Both are the small CNN on MNIST. The cosine classifier's logits are cosines, bounded by 1 (trained at T = 1/16 on PGD
images); TRADES (Zhang et al. 2019, beta 6) is trained here in a few lines. The attack is PGD-20, L-inf, one random
start of the same keys for every T; "union" is the per-sample strongest of all T (`temperature_sweep`), beside as many
restarts of PGD at T = 1.
"""

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import machine, table

from jax_advtrain import attacks, data, models

TEMPERATURES = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)
BATCH, RADIUS, SCALE, BETA = 128, 0.3, 16.0, 6.0


def network(kind: str, image_shape):
    """(logits of (params, images), params); the cosine head has 64 features."""
    made = models.create({"name": "small_cnn"}, 64 if kind == "cosine" else 10, image_shape, 0)
    outputs = lambda params, x: models.logits_fn(made.graphdef, params, {})(x)  # noqa: E731
    if kind != "cosine":
        return outputs, made.params

    def cosines(params, x):
        unit = lambda v: v / jnp.sqrt(jnp.sum(jnp.square(v), axis=-1, keepdims=True) + 1e-12)  # noqa: E731
        return unit(outputs(params["features"], x)) @ unit(params["classes"]).T

    return cosines, {"features": made.params, "classes": jax.random.normal(jax.random.key(1), (10, 64))}


def divergence(clean):
    """KL(clean || attacked) as a loss to ascend; the labels are not looked at."""
    return lambda outputs, labels: jnp.sum(
        jax.nn.softmax(clean) * (jax.nn.log_softmax(clean) - jax.nn.log_softmax(outputs)), axis=-1
    )


def train(kind: str, images, labels, epochs: int):
    logits, params = network(kind, images.shape[1:])
    total = epochs * (len(images) // BATCH)
    optimizer = optax.adam(optax.linear_schedule(1e-3, 0.0, total))

    def loss(params, attacked, x, y):
        if kind == "cosine":
            return jnp.mean(attacks.cross_entropy(SCALE * logits(params, attacked), y))
        clean = logits(params, x)
        return jnp.mean(attacks.cross_entropy(clean, y) + BETA * divergence(clean)(logits(params, attacked), y))

    @jax.jit
    def step(params, state, key, x, y, epsilon):
        x = data.to_unit(x)
        model = jax.tree_util.Partial(logits, params)
        climbed = "ce" if kind == "cosine" else divergence(model(x))
        climbed = attacks.with_temperature("ce", 1 / SCALE) if kind == "cosine" else climbed
        attack = attacks.pgd(norm="linf", epsilon=0.0, num_steps=7, loss=climbed)
        attacked = attack(key, model, x, y, epsilon=epsilon)
        value, gradient = jax.value_and_grad(loss)(params, attacked, x, y)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, rng, done = optimizer.init(params), np.random.default_rng(0), 0
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            radius = RADIUS * min(1.0, 2 * done / total)
            params, state, _ = step(params, state, jax.random.key(done), images[rows], labels[rows], radius)
            done += 1
    return jax.tree_util.Partial(logits, params)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--num_train", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args()
    splits = data.load({"name": "mnist", "data_dir": args.data_dir, "num_train": args.num_train, "validation_size": 0})
    images = jnp.asarray(data.to_unit(splits.test.images[: args.samples]))
    labels = jnp.asarray(splits.test.labels[: args.samples])
    run = jax.jit(lambda attack, key, logits_fn, epsilon: attack.run(key, logits_fn, images, labels, epsilon=epsilon))
    rows, pgd = [], _pgd("ce")
    sweep = attacks.temperature_sweep(pgd, TEMPERATURES)
    for kind in ("cosine", "trades"):
        started = time.perf_counter()
        model = train(kind, splits.train.images, splits.train.labels, args.epochs)
        print(f"{kind} trained in {time.perf_counter() - started:.0f} s", flush=True)
        for epsilon in (0.2, 0.3):
            ask = partial(run, key=jax.random.key(0), logits_fn=model, epsilon=epsilon)
            alone = {T: ask(_pgd(attacks.with_temperature("ce", T))) for T in TEMPERATURES}
            assert bool(jnp.array_equal(alone[1.0].images, ask(pgd).images)), "T = 1 is PGD bit for bit"
            union, restarts = ask(sweep), ask(attacks.restarts(pgd, len(TEMPERATURES)))
            margin = ask(_pgd("lm"))
            cells = [found.is_right.mean() for found in (*alone.values(), union, restarts, margin)]
            rows.append([kind, f"{epsilon:g}", *(f"{100 * float(cell):.1f}" for cell in cells)])
            print(rows[-1], attacks.winners_by_class(union, labels, 10, len(TEMPERATURES)).sum(1).tolist(), flush=True)
    print(f"\nRobust accuracy in percent, first {len(images)} test images of MNIST; {machine()}\n")
    head = ["model", "epsilon", *(f"T = {T:g}" for T in TEMPERATURES)]
    print(table([*head, "union of T", f"T = 1, {len(TEMPERATURES)} restarts", "logit margin"], rows))


def _pgd(loss):
    return attacks.pgd(norm="linf", epsilon=0.0, num_steps=20, loss=loss)


if __name__ == "__main__":
    main()
