"""PGD-20 in one jit against its floor: 20 x the bare compiled forward + input gradient, best lowering.

    python benchmarks/attack_overhead.py [--rounds=15] [--networks=small,resnet]

Networks: the small strided CNN on 28x28x1, and six 3x3 convolutions with 64 channels on 32x32x3 (ResNet's sizes). All
functions take turns in one run; the least of the rounds counts. Parameters are arguments everywhere.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
from _timing import interleaved, machine, table
from flax import nnx

from jax_advtrain import attacks, models
from jax_advtrain.models import Conv, Dense, functional
from jax_advtrain.models.convolution import LOWERINGS

STEPS = 20


class Stack(nnx.Module):
    """Six 3x3 convolutions of 64 channels, mean over the image, ten logits."""

    def __init__(self, lowering: str, rngs: nnx.Rngs):
        self.convs = nnx.List(
            [
                Conv(3 if n == 0 else 64, 64, (3, 3), padding=((1, 1), (1, 1)), lowering=lowering, rngs=rngs)
                for n in range(6)
            ]
        )
        self.dense = Dense(64, 10, rngs=rngs)

    def __call__(self, images):
        for conv in self.convs:
            images = jax.nn.relu(conv(images))
        return self.dense(images.mean(axis=(1, 2)))


def small(lowering: str):
    return models.create({"name": "small_cnn", "lowering": lowering}, 10, (28, 28, 1), 0)


def resnet(lowering: str):
    return functional.split(Stack(lowering, nnx.Rngs(0)))


NETWORKS = {"small": (small, (28, 28, 1)), "resnet": (resnet, (32, 32, 3))}


@jax.jit
def bare(logits_fn, images, labels):
    """One forward + input gradient."""
    return jax.grad(lambda x: jnp.sum(attacks.cross_entropy(logits_fn(x), labels)))(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", default="small,resnet")
    parser.add_argument("--batches", default="128,64")
    args = parser.parse_args()
    run = jax.jit(lambda attack, key, logits_fn, x, y: attack(key, logits_fn, x, y))
    rows = []
    for name in args.networks.split(","):
        make, shape = NETWORKS[name]
        for batch in map(int, args.batches.split(",")):
            images = jax.random.uniform(jax.random.key(0), (batch, *shape))
            labels = jnp.arange(batch) % 10
            networks = {lowering: models.logits_fn(*make(lowering)) for lowering in ("auto", *LOWERINGS)}
            functions = {n: partial(bare, f, images, labels) for n, f in networks.items()}
            for norm in ("linf", "l2"):
                attack = attacks.pgd(norm=norm, epsilon=0.1, num_steps=STEPS)
                functions["PGD " + norm] = partial(run, attack, jax.random.key(1), networks["auto"], images, labels)
            seconds = interleaved(functions, args.rounds)
            floor = min(seconds[n] for n in networks)
            best = min(networks, key=lambda n: seconds[n])
            rows.append(
                [
                    name,
                    str(batch),
                    f"{1000 * floor:.1f} ms ({best})",
                    *(f"{1000 * seconds[n]:.1f}" for n in networks),
                    *(f"{seconds['PGD ' + norm] / (STEPS * floor):.2f}" for norm in ("linf", "l2")),
                    f"{batch / seconds['PGD linf']:.0f} / {batch / seconds['PGD l2']:.0f}",
                ]
            )
    head = [
        "network",
        "batch",
        "floor",
        *(f"{n} ms" for n in networks),
        "PGD-20 linf / floor",
        "l2 / floor",
        "samples/s",
    ]
    print(f"PGD-20 against 20 x floor; {machine()}; least of {args.rounds} interleaved rounds\n")
    print(table(head, rows))


if __name__ == "__main__":
    main()
