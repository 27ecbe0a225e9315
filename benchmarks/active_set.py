"""AutoAttack through the active set against whole batches: the same verdicts, passes needed and run, seconds.

    python benchmarks/active_set.py --weights=/tmp/peers_data/small_cnn-mnist-standard.npz --samples=512

The weights are those that `benchmarks/peers/train.py` saves. Everything is compiled before it is timed: the active set
by a whole run, whole batches by one of them. What the needed passes cost is told in two prices: that of a pass of the
whole-batch run (the same loops, full from the first step to the last; told only where some sample of every batch
withstands to the end, else the whole batches stop early too), and that of a bare compiled forward and input gradient.
Ratios are of processor time, which others on the machine hardly change; where the programs run on one core
(`taskset`, XLA_FLAGS=--xla_cpu_multi_thread_eigen=false) it is what a quiet machine's clock shows.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _timing import machine, table

from jax_advtrain import attacks
from jax_advtrain.data import Dataset
from jax_advtrain.evaluation.attack_dataset import attack_dataset, first

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import networks


def processor_time(function, rounds: int) -> float:
    """Processor seconds of a call, the least of some rounds; it is compiled first."""
    found = []
    for _ in range(rounds + 1):
        started = time.process_time()
        jax.block_until_ready(function())
        found.append(time.process_time() - started)
    return min(found[1:])


@jax.jit
def bare(logits_fn, images, labels):
    return jax.grad(lambda x: jnp.sum(attacks.cross_entropy(logits_fn(x), labels)))(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--num_steps", type=int, default=100)
    parser.add_argument("--num_queries", type=int, default=1000)
    parser.add_argument("--epsilons", default="0.05,0.1,0.2")
    args = parser.parse_args()
    case = networks.load(Path(args.weights))
    logits_fn, count = networks.logits_fn(case), min(args.samples, len(case.images))
    images, labels = case.images[:count], case.labels[:count]
    data = Dataset("attacked", images, labels.astype(np.int32), np.arange(count), tuple("0123456789"), split="test")
    attack = attacks.autoattack(norm="linf", epsilon=0.0, num_steps=args.num_steps, num_queries=args.num_queries)
    few = jnp.asarray(images[: args.batch]), jnp.asarray(labels[: args.batch])
    rows, times = [], {}
    for epsilon in map(float, args.epsilons.split(",")):
        ask = partial(attack_dataset, attack, logits_fn, data, epsilon=epsilon, batch_size=args.batch, times=times)
        ask(active_set=True)
        attack_dataset(
            attack, logits_fn, first(data, args.batch), epsilon=epsilon, batch_size=args.batch, active_set=False
        )
        seconds, clock, found = {}, {}, {}
        for active in (True, False):
            started = time.process_time(), time.perf_counter()
            found[active] = ask(active_set=active)
            seconds[active], clock[active] = time.process_time() - started[0], time.perf_counter() - started[1]
        # A pass is a forward or a backward of one sample; the bare function is one of each.
        price = processor_time(partial(bare, logits_fn, *few), 15) / args.batch / 2
        work, whole = found[True].work, attack.passes * count
        assert work is not None and (found[True].is_right == found[False].is_right).all()
        right = found[True].is_right
        to_the_end = all(right[start : start + args.batch].any() for start in range(0, count, args.batch))
        at_whole_price = work.needed * seconds[False] / whole
        rows.append(
            [
                f"{epsilon:g}",
                f"{100 * found[True].is_right.mean():.1f} %",
                f"{whole / count:,.0f}",
                f"{work.needed / count:,.0f}",
                f"{work.run / work.needed:.2f}",
                f"{seconds[False]:.1f} s ({clock[False]:.1f})",
                f"{seconds[True]:.1f} s ({clock[True]:.1f})",
                f"{seconds[False] / seconds[True]:.1f} x",
                f"{seconds[True] / at_whole_price:.2f}" if to_the_end else "-",
                f"{seconds[True] / (work.needed * price):.2f}",
            ]
        )
        print(rows[-1], file=sys.stderr, flush=True)
    print(f"AutoAttack (standard, L-inf, {args.num_steps} steps, {args.num_queries} queries) on {count} samples of")
    print(f"{Path(args.weights).stem}, batch {args.batch}; {machine()}\n")
    head = [
        "epsilon",
        "robust",
        "passes a sample, all",
        "needed",
        "run / needed",
        "whole batches: processor (clock)",
        "active set: processor (clock)",
        "gain",
    ]
    print(table([*head, "seconds / (needed x pass of whole batches)", "seconds / (needed x bare pass)"], rows))


if __name__ == "__main__":
    main()
