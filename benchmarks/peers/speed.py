"""Samples per second of ours and of the originals, side by side in one run, and ours against its floor.

    PYTHONPATH=benchmarks python benchmarks/peers/speed.py --peers_python=/tmp/peers/bin/python [--rounds=7]

(`taskset -c 0` before it gives either side one core; else both have all.)

One batch of the trained small CNN on MNIST: the images that it classifies with the largest margins. Two tables:
"equal passes" at a radius at which nothing falls, so that everybody makes all steps; "stopping early" at the case's
radius, where each does what it does (ours through `until_success`). The floor is the passes of the attack times the
bare compiled pass (forward + input gradient; for Square the forward pass) in the best lowering. All take turns; the
least of the rounds counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import networks
import numpy as np
import ours
from _timing import machine, table
from settings import CASES, Setting, step_size

from jax_advtrain import attacks, models
from jax_advtrain.attacks import until_success
from jax_advtrain.models.convolution import LOWERINGS

HERE = Path(__file__).resolve().parent
NOTHING_FALLS = {"linf": 1e-5, "l2": 1e-4}
PEERS = ("torchattacks", "foolbox", "art", "official")


class Child:
    """The peers' process: one question, one answer."""

    def __init__(self, python: str, npz: str, threads: int):
        command = [python, str(HERE / "speed_peers.py"), npz, str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, question: str, values: list):
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({question: values}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the peers' process ended at {question} {values}; run it by hand to see why")
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@jax.jit
def gradient_pass(logits_fn, images, labels):
    return jax.grad(lambda x: jnp.sum(attacks.cross_entropy(logits_fn(x), labels)))(images)


@jax.jit
def forward_pass(logits_fn, images, labels):
    return logits_fn(images)


@jax.jit
def whole(attack, key, logits_fn, images, labels):
    return attack(key, logits_fn, images, labels)


def seconds_of(function) -> float:
    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def in_turns(functions: dict, rounds: int) -> dict[str, float]:
    """Least seconds of each; a function gives its own seconds."""
    best = {}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            found = function()
            if turn:  # the first warms up
                best[name] = min(best.get(name, np.inf), found)
    return best


def lowered(case: networks.Case) -> dict:
    """The small CNN in each lowering of its convolutions."""
    found = {}
    for name in ("auto", *LOWERINGS):
        network = models.create({"name": "small_cnn", "lowering": name}, 10, case.images.shape[1:], 0)
        found[name] = models.logits_fn(network.graphdef, case.params, {})
    return found


def easiest(path: str, batch: int) -> networks.Case:
    """The case with the images of the largest margins alone."""
    case = networks.load(Path(path))
    margins = -np.asarray(
        attacks.logit_margin(networks.logits_fn(case)(jnp.asarray(case.images)), jnp.asarray(case.labels))
    )
    rows = np.sort(np.argsort(-margins)[:batch])
    return case._replace(images=case.images[rows], labels=case.labels[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers_python", default="/tmp/peers/bin/python")
    parser.add_argument("--data", default="/tmp/peers_data")
    parser.add_argument("--case", default="small_cnn-mnist-standard")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--attacks", default="pgd:20,apgd_ce:100,square:1000")
    parser.add_argument("--norms", default="linf,l2")
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    case, radii = easiest(f"{args.data}/{args.case}.npz", args.batch), CASES[args.case]
    x, y = jnp.asarray(case.images), jnp.asarray(case.labels)
    functions = lowered(case)
    with tempfile.TemporaryDirectory() as folder:
        npz = Path(folder) / "batch.npz"
        networks.save(npz, case, np.asarray(functions["auto"](x)))
        child = Child(args.peers_python, str(npz), threads)
        rows = {True: [], False: []}
        for wanted in args.attacks.split(","):
            kind, steps = wanted.split(":")[0], int(wanted.split(":")[1])
            for norm in args.norms.split(","):
                for stops in (False, True):
                    epsilon = getattr(radii, norm) if stops else NOTHING_FALLS[norm]
                    setting = Setting(kind, norm, steps, False, 0)
                    rows[stops].append(measured(setting, epsilon, stops, functions, x, y, child, args.rounds))
                    print(" | ".join(rows[stops][-1]), file=sys.stderr, flush=True)
        child.close()
    header = ["attack", "ours", *PEERS, "ours / best peer", "floor (lowering)", "ours / floor"]
    print(f"Samples per second; {args.case}, batch {args.batch}, {threads} threads; least of {args.rounds} rounds;")
    print(machine())
    print("\nEqual passes (nothing falls):\n\n" + table(header, rows[False]))
    stopping = ["attack", "ours, until_success", *PEERS, "ours / best peer", "fooled: ours; peers"]
    print("\nStopping early, each as it does:\n\n" + table(stopping, rows[True]))


def measured(setting: Setting, epsilon: float, stops: bool, functions, x, y, child: Child, rounds: int) -> list[str]:
    values = [setting.kind, setting.norm, setting.steps, epsilon]
    attack = ours._attack(setting.kind, setting.norm, setting.steps, epsilon, step_size(setting, epsilon))
    bare = forward_pass if setting.kind == "square" else gradient_pass
    turns, fooled = {}, {}
    if attack is not None:
        run = partial(whole, until_success(attack) if stops else attack, jax.random.key(0), functions["auto"], x, y)
        fooled["ours"] = int((functions["auto"](run()).argmax(-1) != y).sum())
        turns["ours"] = partial(seconds_of, run)
    if not stops:
        for name, function in functions.items():
            turns[f"floor {name}"] = partial(seconds_of, partial(bare, function, x, y))
    for name in child.ask("names", values):

        def peer(name=name):
            seconds, fooled[name] = child.ask("run", [name, *values])
            return seconds

        turns[name] = peer
    best = in_turns(turns, rounds)
    rate = {name: len(x) / best[name] for name in ("ours", *PEERS) if name in best}
    against = max((rate[name] for name in PEERS if name in rate), default=np.nan)
    cells = [f"{rate[name]:.0f}" if name in rate else "-" for name in ("ours", *PEERS)]
    line = [f"{setting.kind}-{setting.steps} {setting.norm}", *cells, f"{rate.get('ours', np.nan) / against:.2f}"]
    if stops:
        return [*line, "; ".join(f"{name} {fooled[name]}" for name in ("ours", *PEERS) if name in fooled)]
    if any(fooled.values()):
        raise SystemExit(f"{setting}: at radius {epsilon} some fall ({fooled}); passes would not be equal")
    floors = {name: best[f"floor {name}"] for name in functions}
    lowering = min(floors, key=lambda name: floors[name])
    floor = setting.steps * floors[lowering]
    return [*line, f"{len(x) / floor:.0f} ({lowering})", f"{best.get('ours', np.nan) / floor:.2f}"]


if __name__ == "__main__":
    main()
