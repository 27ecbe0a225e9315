"""Cost of each defense in units of one standard training step, beside its theory in passes.

    python benchmarks/defense_cost.py [--rounds=20] [--batch=128]

The real step on the small CNN, images of MNIST's shape drawn at random (no data set is needed), default settings of
each defense, L-inf 0.3, after warm-ups. The steps take turns; the least of all rounds counts. In theory a forward pass
is 1, the gradient by images 1, that by weights 1 (docs/defenses.md); bisection is counted for all samples, though IMA
and AME spare those that were not hit. With few rounds or on a busy machine the figures mean little.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import interleaved, machine, table

from jax_advtrain import devices, models, tasks
from jax_advtrain.defenses import DEFENSES
from jax_advtrain.training import optim
from jax_advtrain.training.state import shardings
from jax_advtrain.training.step import HostBatch, Recipe, init_state, make_step

# A training pass: forward, gradient by images between the layers, gradient by weights.
TRAINED = 3
COMBINED = ("pgd_at", "trades", "mart")


def theory(name: str, defense: Any) -> int:
    """Passes a sample and step."""
    steps, refine = getattr(defense, "num_steps", 0), getattr(defense, "refine_steps", 0)
    own, trained = {
        "standard": (0, 1),
        "trades": (2 * steps + 1, 2),
        "mart": (2 * steps, 2),
        "iaat": (4 * steps + 2, 2),
        "mma": (2 * steps + 2 + refine, 2),
        "ima": (2 * steps + 1 + refine, 2),
        "ame": (2 * steps + 3 + refine, 2),
    }.get(name, (2 * steps, 1))
    return own + TRAINED * trained * (2 if getattr(defense, "awp_gamma", 0) else 1)


class Running:
    """One defense's step and its state; a class because the state is donated from call to call."""

    def __init__(self, defense: Any, batch: HostBatch, mesh) -> None:
        network = models.create({"name": "small_cnn"}, 10, batch.images.shape[1:], 0)
        recipe = Recipe(
            graphdef=network.graphdef,
            task=tasks.CLASSIFICATION,
            defense=defense,
            optimizer=optim.build(optim.DEFAULTS, steps_per_epoch=100, epochs=1),
            num_shards=8,
            seed=0,
        )
        start = partial(init_state, recipe, num_slots=len(batch.slots), num_classes=10, example=batch)
        state = start(network.params, network.batch_stats)
        self.state = jax.device_put(state, shardings(mesh, state), may_alias=False)
        self.step = make_step(recipe, mesh, self.state, batch)
        self.batch = batch

    def __call__(self) -> jax.Array:
        self.state, loss = self.step(self.state, self.batch, jnp.int32(100))
        return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    rng, mesh = np.random.default_rng(0), devices.make_mesh(jax.devices()[:1])
    batch = HostBatch(
        images=rng.integers(0, 256, (args.batch, 28, 28, 1), np.uint8),
        labels=rng.integers(0, 10, args.batch, np.int32),
        ids=np.arange(args.batch, dtype=np.int32),
        slots=np.tile(np.arange(args.batch // 8, dtype=np.int32), 8),
    )
    made = {name: (name, method()) for name, method in DEFENSES.items()}
    made |= {f"{name}, AWP": (name, DEFENSES[name](awp_gamma=0.01)) for name in COMBINED}
    seconds = interleaved({label: Running(one, batch, mesh) for label, (_, one) in made.items()}, args.rounds)
    rows = []
    for label, (name, one) in made.items():
        measured, passes = seconds[label] / seconds["standard"], theory(name, one)
        expected = passes / TRAINED
        numbers = (f"{1e3 * seconds[label]:.1f}", f"{measured:.1f}", str(passes), f"{expected:.1f}")
        rows.append([label, *numbers, f"{measured / expected:.2f}"])
    print(f"Training steps, small CNN, batch {args.batch}; {machine()}; least of {args.rounds} rounds\n")
    print(table(["defense", "ms", "standard steps", "passes", "in theory", "measured / theory"], rows))


if __name__ == "__main__":
    main()
