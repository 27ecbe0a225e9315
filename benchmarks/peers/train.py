"""Trains the networks of the comparison and saves weights, test images and logits. Runs in the project's environment.

    python benchmarks/peers/train.py --data_dir=/work/shared/tfds --out=/tmp/peers_data [--cases=NAME,NAME]

Adam 1e-3 falling to 0, batch 128; PGD-trained with 7 steps from a random start, the radius growing over the first half.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
from settings import CASES, Case

from jax_advtrain import attacks, data

BATCH = 128


def train(case: Case, images: np.ndarray, labels: np.ndarray):
    """The trained weights."""
    logits, params = networks.make(case.architecture, images.shape[1:])
    total = case.epochs * (len(images) // BATCH)
    optimizer = optax.adam(optax.linear_schedule(1e-3, 0.0, total))
    attack = attacks.pgd(norm="linf", epsilon=0.0, num_steps=7)

    @jax.jit
    def step(params, state, key, x, y, epsilon):
        x = data.to_unit(x)
        if case.train_epsilon is not None:
            x = attack(key, jax.tree_util.Partial(logits, params), x, y, epsilon=epsilon)
        loss, gradient = jax.value_and_grad(lambda p: attacks.cross_entropy(logits(p, x), y).mean())(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state, rng, done = optimizer.init(params), np.random.default_rng(0), 0
    for epoch in range(case.epochs):
        order, losses = rng.permutation(len(images)), []
        for start in range(0, len(images) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            epsilon = (case.train_epsilon or 0.0) * min(1.0, 2 * done / total)
            params, state, loss = step(params, state, jax.random.key(done), images[rows], labels[rows], epsilon)
            losses.append(loss)
            done += 1
        print(f"  epoch {epoch + 1}: loss {float(jnp.mean(jnp.stack(losses))):.3f}", flush=True)
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", default="/work/shared/tfds")
    parser.add_argument("--out", default="/tmp/peers_data")
    parser.add_argument("--cases", default=",".join(CASES))
    args = parser.parse_args()
    for name in args.cases.split(","):
        case, path = CASES[name], Path(args.out) / f"{name}.npz"
        if path.exists():
            continue
        print(name, flush=True)
        started = time.perf_counter()
        splits = data.load(
            {"name": case.data, "data_dir": args.data_dir, "num_train": case.num_train, "validation_size": 0}
        )
        params = train(case, splits.train.images, splits.train.labels)
        x, y = data.to_unit(splits.test.images[: case.samples]), splits.test.labels[: case.samples]
        kept = networks.Case(case.architecture, jax.device_get(params), x, y)
        function = networks.logits_fn(kept)
        logits = np.asarray(function(jnp.asarray(x)))
        attacked = attacks.pgd(norm="linf", epsilon=case.linf)(
            jax.random.key(0), function, jnp.asarray(x), jnp.asarray(y)
        )
        networks.save(path, kept, logits)
        clean, robust = np.mean(logits.argmax(1) == y), np.mean(np.asarray(function(attacked)).argmax(1) == y)
        print(f"  clean {clean:.3f}, PGD-20 at {case.linf:.4f} {robust:.3f}, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
