"""Memory of the compiled training step against the number of attack steps, and its time against the number of margins.

    python benchmarks/memory.py
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/memory.py     # margins over 8 devices

Nothing is differentiated through the attack, so the step's memory must not grow with its steps; margins are looked up
and written back in place, so its time must not grow with their number.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from _timing import interleaved, machine, table

from jax_advtrain import devices, models, tasks
from jax_advtrain.defenses import IMA, Madry
from jax_advtrain.training import optim
from jax_advtrain.training.state import shardings
from jax_advtrain.training.step import HostBatch, Recipe, init_state, make_step

BATCH = 128


def recipe_and_state(defense, num_slots: int, mesh):
    network = models.create({"name": "small_cnn"}, 10, (28, 28, 1), 0)
    optimizer = optim.build(optim.DEFAULTS, steps_per_epoch=1, epochs=1)
    recipe = Recipe(network.graphdef, tasks.CLASSIFICATION, defense, optimizer, num_shards=8, seed=0)
    rows = np.random.default_rng(0)
    batch = HostBatch(
        devices.spread(mesh, rows.integers(0, 256, (BATCH, 28, 28, 1), np.uint8)),
        devices.spread(mesh, rows.integers(0, 10, BATCH).astype(np.int32)),
        devices.spread(mesh, np.arange(BATCH, dtype=np.int32)),
        devices.spread(mesh, rows.integers(0, num_slots // 8, BATCH).astype(np.int32)),
    )
    state = init_state(recipe, network.params, network.batch_stats, num_slots=num_slots, num_classes=10, example=batch)
    state = jax.device_put(state, shardings(mesh, state))
    return state, batch, make_step(recipe, mesh, state, batch)


def main() -> None:
    mesh = devices.make_mesh()
    print(f"Compiled step, small CNN, batch {BATCH}; {machine()}\n")
    rows = []
    for name, defense in (("IMA", IMA()), ("PGD-AT", Madry())):
        cells = []
        for steps in (1, 20, 100):
            state, batch, step = recipe_and_state(dataclasses.replace(defense, num_steps=steps), 60000, mesh)
            compiled = step.lower(state, batch, jnp.int32(0)).compile()
            cells.append(f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:.1f} MiB")
        rows.append([name, *cells])
    print(table(["temporary memory of one device at", "1 attack step", "20", "100"], rows), "\n")
    functions, sizes = {}, {}
    for slots in (60000, 100_000_000):
        state, batch, step = recipe_and_state(IMA(num_steps=1, refine_steps=1), slots, mesh)
        sizes[slots] = state.sample_state["margin"].addressable_shards[0].data.nbytes
        compiled = step.lower(state, batch, jnp.int32(0)).compile()
        carried = [state]

        def one(compiled=compiled, carried=carried, batch=batch):
            carried[0], loss = compiled(carried[0], batch, jnp.int32(0))
            return loss

        functions[slots] = one
    seconds = interleaved(functions, 40)
    rows = [
        [f"{slots:,}", f"{sizes[slots] / 1e6:.1f} MB", f"{1000 * s:.2f} ms", f"{s / seconds[60000]:.2f}"]
        for slots, s in seconds.items()
    ]
    print(table(["margins", "a device", "IMA step (1 attack step)", "ratio"], rows))


if __name__ == "__main__":
    main()
