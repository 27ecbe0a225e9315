"""Samples per second of IMA training, hit samples compacted before bisection and not, beside standard training.

    python benchmarks/ima_epoch.py --data_dir=TFDS --order=mnist_order.npz

The setting of the official code's figure (409 samples/s, standard epoch 0.94 s, torch on a 2-core machine like ours):
first 10,000 original MNIST training images, small strided CNN, batch 128, L2, ceiling 3, delta 0.1. The epochs of the
variants take turns; the first epoch, in which an untrained network is wrong on most samples, is left out.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from _timing import machine, table

from jax_advtrain import devices
from jax_advtrain.config import base
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import feed
from jax_advtrain.training.state import shardings
from jax_advtrain.training.step import make_step

OFFICIAL = 409


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--order", required=True)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    mesh = devices.make_mesh()
    runs = {}
    for name, method, fields in (
        ("IMA, compacted", "ima", {"compact": True}),
        ("IMA, whole batch", "ima", {"compact": False}),
        ("PGD-AT", "pgd_at", {}),
        ("standard", "standard", {}),
    ):
        config = base(method)
        config.data.name, config.data.data_dir = "mnist", args.data_dir
        config.data.train_ids = np.load(args.order)["train"][:10000].tolist()
        config.data.validation_size, config.data.num_test = 100, 100
        if method == "ima":
            config.defense.norm, config.defense.eps_max, config.defense.delta = "l2", 3.0, 0.1
        for field, value in fields.items():
            config.defense[field] = value
        experiment = experiments.build(config, mesh)
        state = jax.device_put(experiment.template, shardings(mesh, experiment.template))
        step = make_step(experiment.recipe, mesh, state, experiment.example)
        runs[name] = [experiment, step.lower(state, experiment.example, jnp.int32(0)).compile(), state, []]
    waited = 0.0
    for epoch in range(args.epochs + 1):
        for one in runs.values():
            experiment, step, state, seconds = one
            waiting, started = feed.Waiting(), time.perf_counter()
            first, per_epoch = epoch * experiment.steps_per_epoch, experiment.steps_per_epoch
            made = feed.batches(mesh, experiment.splits.train, experiment.visits, first, first + per_epoch)
            with feed.ahead(made, waiting) as batches:
                for batch in batches:
                    state, loss = step(state, batch, jnp.int32(epoch))
                    jax.block_until_ready(loss)
            one[2] = state
            seconds.append((time.perf_counter() - started, waiting.seconds))
            waited = max(waited, waiting.seconds / seconds[-1][0])
    rows = []
    for name, (_, _, _, seconds) in runs.items():
        times = [s for s, _ in seconds[1:]]
        rate = 10000 / float(np.median(times))
        wait = float(np.median([w / s for s, w in seconds[1:]]))
        against = f"{rate / OFFICIAL:.2f}" if name.startswith("IMA") else "-"
        rows.append([name, f"{rate:.0f}", f"{10000 / min(times):.0f}", against, f"{100 * wait:.1f}%"])
    print(f"IMA on MNIST, 10,000 images, L2; {machine()}; median and best of {args.epochs} epochs, taking turns\n")
    print(table(["training", "samples/s", "best", f"/ official ({OFFICIAL})", "time waiting for input"], rows))


if __name__ == "__main__":
    main()
