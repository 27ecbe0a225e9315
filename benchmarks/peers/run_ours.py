"""Runs our attacks on the saved networks and keeps their verdicts (the project's environment). What is there is not
redone, unless --redo.

    python benchmarks/peers/run_ours.py [--cases=..] [--attacks=..] [--passes=2000000] [--seed=0] [--redo]
"""

import argparse
import time

import jax
import jax.numpy as jnp
import networks
import numpy as np
import ours
import verdicts
from settings import CASES, SETTINGS, epsilon_of, samples_of

BATCH = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="/tmp/peers_data")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--attacks", default=",".join(SETTINGS))
    parser.add_argument("--passes", type=int, default=2_000_000, help="samples x passes of one attack, at most about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--redo", action="store_true")
    args = parser.parse_args()
    who = "ours" if args.seed == 0 else f"ours seed {args.seed}"
    for name in args.attacks.split(","):
        for case_name in args.cases.split(","):
            case, setting = CASES[case_name], SETTINGS[name]
            place = verdicts.path(args.data, case_name, name, who)
            epsilon, count = epsilon_of(case, setting), samples_of(case, setting, args.passes)
            if verdicts.is_done(place, count) and not args.redo:
                continue
            try:
                attack = ours.attack(setting, epsilon)
            except ValueError as error:
                print(f"{case_name:28s} {name:16s} {who}: {error}", flush=True)
                continue
            if attack is None:
                continue
            kept = networks.load(f"{args.data}/{case_name}.npz")
            function = networks.logits_fn(kept)
            classify = jax.jit(lambda function, images: function(images).argmax(-1))
            x, y = kept.images[:count], kept.labels[:count].astype(np.int32)
            started, attacked = time.perf_counter(), []
            for at in range(0, count, BATCH):
                key = jax.random.key(1000 * args.seed + at)
                attacked.append(
                    np.asarray(attack(key, function, jnp.asarray(x[at : at + BATCH]), jnp.asarray(y[at : at + BATCH])))
                )
            attacked, seconds = np.concatenate(attacked), time.perf_counter() - started
            right, clean = (np.asarray(classify(function, jnp.asarray(v))) == y for v in (attacked, x))
            found = verdicts.judge(x, attacked, right, clean, setting.norm)
            verdicts.save(place, found, seconds)
            said = verdicts.line(found, epsilon, setting.minimum)
            print(f"{case_name:28s} {name:16s} {who:18s} {said}, {seconds:.1f} s, n={count}", flush=True)


if __name__ == "__main__":
    main()
