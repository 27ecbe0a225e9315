"""Temperature-PGD over T on a cosine classifier and on a TRADES model, beside PGD with as many runs.

    python benchmarks/temperature.py --data_dir=TFDS [--num_train=10000] [--epochs=6]

Both are the small CNN on MNIST. The cosine classifier's logits are cosines, bounded by 1 (trained at T = 1/16 on PGD
images, in a few lines here); TRADES (Zhang et al. 2019, beta 6) is the product's, in the ordinary loop. The attack is
PGD-20, L-inf, one random start of the same keys for every T; "union" is the per-sample strongest of all T
(`temperature_sweep`), beside as many restarts of PGD at T = 1.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import machine, table
from rich.console import Console

from jax_advtrain import attacks, data, devices, models
from jax_advtrain.config import base
from jax_advtrain.config_check import validate
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import loop
from jax_advtrain.training.checkpoints import Saved
from jax_advtrain.training.display import Display

TEMPERATURES = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)
BATCH, RADIUS, SCALE, BETA = 128, 0.3, 16.0, 6.0


def cosine_classifier(images, labels, epochs: int) -> jax.tree_util.Partial:
    """The small CNN with a cosine head on 64 features, trained on PGD images at T = 1/16; its logits are cosines."""
    made = models.create({"name": "small_cnn"}, 64, images.shape[1:], 0)

    def cosines(params, x):
        unit = lambda v: v / jnp.sqrt(jnp.sum(jnp.square(v), axis=-1, keepdims=True) + 1e-12)  # noqa: E731
        return unit(models.logits_fn(made.graphdef, params["features"], {})(x)) @ unit(params["classes"]).T

    params = {"features": made.params, "classes": jax.random.normal(jax.random.key(1), (10, 64))}
    total = epochs * (len(images) // BATCH)
    optimizer = optax.adam(optax.linear_schedule(1e-3, 0.0, total))
    climbed = attacks.with_temperature("ce", 1 / SCALE)

    def loss(params, attacked, y):
        return jnp.mean(attacks.cross_entropy(SCALE * cosines(params, attacked), y))

    @jax.jit
    def step(params, state, key, x, y, epsilon):
        attack = attacks.pgd(norm="linf", epsilon=0.0, num_steps=7, loss=climbed)
        attacked = attack(key, jax.tree_util.Partial(cosines, params), data.to_unit(x), y, epsilon=epsilon)
        updates, state = optimizer.update(jax.grad(loss)(params, attacked, y), state)
        return optax.apply_updates(params, updates), state

    state, rng, done = optimizer.init(params), np.random.default_rng(0), 0
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            radius = RADIUS * min(1.0, 2 * done / total)
            params, state = step(params, state, jax.random.key(done), images[rows], labels[rows], radius)
            done += 1
    return jax.tree_util.Partial(cosines, params)


def trades(data_dir: str, num_train: int, epochs: int) -> jax.tree_util.Partial:
    """TRADES on the same images, the radius growing over the first half of the epochs."""
    config = base("trades", "small_cnn")
    config.data.name, config.data.data_dir, config.data.num_train = "mnist", data_dir, num_train
    config.data.validation_size, config.eval.after_training = 0, ""
    config.defense.epsilon, config.defense.beta, config.defense.num_steps = RADIUS, BETA, 7
    config.defense.warmup_epochs = epochs // 2
    config.epochs, config.batch_size, config.optimizer.schedule = epochs, BATCH, "cosine"
    validate(config, 1)
    experiment = experiments.build(config, devices.make_mesh(jax.devices()[:1]))
    with tempfile.TemporaryDirectory() as folder:
        saved = Saved({}, experiment.splits.train.fingerprint(), 0)
        state = loop.train(experiment, config, Path(folder), saved, Display(Console()))
    return experiment.logits_fn(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--num_train", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args()
    splits = data.load({"name": "mnist", "data_dir": args.data_dir, "num_train": args.num_train, "validation_size": 0})
    images = jnp.asarray(data.to_unit(splits.test.images[: args.samples]))
    labels = splits.test.labels[: args.samples]
    run = jax.jit(
        lambda attack, key, logits_fn, epsilon: attack.run(key, logits_fn, images, jnp.asarray(labels), epsilon=epsilon)
    )
    rows, of_classes, pgd = [], {}, _pgd("ce")
    sweep = attacks.temperature_sweep(pgd, TEMPERATURES)
    for kind in ("cosine", "trades"):
        started = time.perf_counter()
        if kind == "cosine":
            model = cosine_classifier(splits.train.images, splits.train.labels, args.epochs)
        else:
            model = trades(args.data_dir, args.num_train, args.epochs)
        print(f"{kind} trained in {time.perf_counter() - started:.0f} s", flush=True)
        for epsilon in (0.2, 0.3):
            ask = partial(run, key=jax.random.key(0), logits_fn=model, epsilon=epsilon)
            alone = {T: ask(_pgd(attacks.with_temperature("ce", T))) for T in TEMPERATURES}
            same = jnp.mean(alone[1.0].is_right == ask(pgd).is_right)
            print(f"{kind}, epsilon {epsilon:g}: T = 1 and PGD agree on {float(same):.1%} of the images", flush=True)
            union, restarts = ask(sweep), ask(attacks.restarts(pgd, len(TEMPERATURES)))
            margin = ask(_pgd("lm"))
            cells = [found.is_right.mean() for found in (*alone.values(), union, restarts, margin)]
            rows.append([kind, f"{epsilon:g}", *(f"{100 * float(cell):.1f}" for cell in cells)])
            wins = np.asarray(attacks.winners_by_class(union, labels, 10, len(TEMPERATURES)))
            print(rows[-1], wins.tolist(), flush=True)
            if epsilon == RADIUS:
                of_classes[kind] = _by_class((*alone.values(), union, restarts, margin), labels)
    print(f"\nRobust accuracy in percent, first {len(images)} test images of MNIST; {machine()}\n")
    head = ["model", "epsilon", *(f"T = {T:g}" for T in TEMPERATURES)]
    head += ["union of T", f"T = 1, {len(TEMPERATURES)} restarts", "logit margin"]
    print(table(head, rows))
    for kind, cells in of_classes.items():
        print(f"\nClass by class, {kind}, epsilon {RADIUS:g}\n")
        print(table(["class", "images", *head[2:]], cells))


def _by_class(found, labels) -> list[list[str]]:
    right = [np.asarray(one.is_right) for one in found]
    return [
        [str(one), str(int((labels == one).sum())), *(f"{100 * cell[labels == one].mean():.1f}" for cell in right)]
        for one in range(10)
    ]


def _pgd(loss):
    return attacks.pgd(norm="linf", epsilon=0.0, num_steps=20, loss=loss)


if __name__ == "__main__":
    main()
