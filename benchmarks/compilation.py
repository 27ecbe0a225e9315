"""Memory and compile time of every gradient attack, against their steps and restarts.

    python benchmarks/compilation.py

Temporary memory of the compiled program (`memory_analysis`), small CNN, beside that of the bare forward and input
gradient: the difference, in images of the batch, must not grow with steps or restarts. Compile times are the least of
three, of programs that differ in the number of steps (so that nothing is cached).
"""

import argparse
import time

import jax
import jax.numpy as jnp
from _timing import machine, table

from jax_advtrain import attacks, models

BATCH, SHAPE = 128, (28, 28, 1)


def lowered(attack, logits_fn, images, labels):
    run = jax.jit(lambda attack, key, logits_fn, x, y: attack.run(key, logits_fn, x, y))
    return run.lower(attack, jax.random.key(0), logits_fn, images, labels)


def compile_seconds(make, steps, arguments) -> float:
    """The least of three; each time a program of a few steps more, which is in no cache."""
    seconds = []
    for more in range(3):
        program = lowered(make(steps + more), *arguments)
        started = time.perf_counter()
        program.compile()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    network = models.create({"name": "small_cnn"}, 10, SHAPE, 0)
    logits_fn = models.logits_fn(network.graphdef, network.params, {})
    images, labels = jax.random.uniform(jax.random.key(0), (BATCH, *SHAPE)), jnp.arange(BATCH) % 10
    arguments = (logits_fn, images, labels)
    floor = jax.jit(jax.grad(lambda x, f: jnp.sum(attacks.cross_entropy(f(x), labels)))).lower(images, logits_fn)
    bare = floor.compile().memory_analysis().temp_size_in_bytes

    def memory(attack) -> str:
        size = lowered(attack, *arguments).compile().memory_analysis().temp_size_in_bytes
        return f"{(size - bare) / images.nbytes:+.1f}"

    kinds = {}
    for norm in ("linf", "l2", "l1"):
        kinds[f"pgd {norm}"] = lambda n, norm=norm: attacks.pgd(norm=norm, epsilon=0.1, num_steps=n)
        kinds[f"apgd {norm}"] = lambda n, norm=norm: attacks.apgd(norm=norm, epsilon=0.1, num_steps=n)
    kinds["mim linf"] = lambda n: attacks.mim(norm="linf", epsilon=0.1, num_steps=n)
    kinds["fab l2"] = lambda n: attacks.fab(norm="l2", num_steps=n)
    kinds["deepfool l2"] = lambda n: attacks.deepfool(norm="l2", num_steps=n)
    kinds["fmn l2"] = lambda n: attacks.fmn(norm="l2", num_steps=n)
    kinds["carlini_wagner"] = lambda n: attacks.carlini_wagner(inner_steps=n, binary_search_steps=3)
    kinds["square linf"] = lambda n: attacks.square(norm="linf", epsilon=0.1, num_steps=n)
    rows = []
    for name, make in kinds.items():
        few, many = (compile_seconds(make, steps, arguments) for steps in (10, 100))
        restarted = memory(attacks.restarts(make(10), 5))
        rows.append([name, memory(make(10)), memory(make(100)), restarted, f"{few:.2f} s", f"{many:.2f} s"])
        print(rows[-1], flush=True)
    print(f"\nSmall CNN, batch {BATCH}; {machine()}\n")
    print(f"The bare forward + input gradient takes {bare / 2**20:.1f} MiB of temporaries = {bare / images.nbytes:.1f}")
    print("batches of images; columns 2 to 4 are what the attack takes beyond it, in batches of images.\n")
    print(table(["attack", "10 steps", "100 steps", "10 steps x 5 restarts", "compiles, 10", "compiles, 100"], rows))


if __name__ == "__main__":
    main()
