"""Runs the originals on the saved networks and keeps their verdicts (peers' environment).

What is there on as many samples is not redone.

    /tmp/peers/bin/python benchmarks/peers/run_peers.py [--cases=..] [--attacks=..] [--who=..] [--passes=2000000]
"""

import argparse
import time

import numpy as np
import peers
import torch
import torch_models
import verdicts
from settings import CASES, SETTINGS, epsilon_of, samples_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="/tmp/peers_data")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--attacks", default=",".join(SETTINGS))
    parser.add_argument("--who", default="")
    parser.add_argument("--passes", type=int, default=2_000_000, help="samples x passes of one attack, at most about")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.attacks.split(","):
        for case_name in args.cases.split(","):
            case, setting = CASES[case_name], SETTINGS[name]
            network, images, labels = torch_models.load(f"{args.data}/{case_name}.npz")
            epsilon, count = epsilon_of(case, setting), samples_of(case, setting, args.passes)
            x, y = images[:count], labels[:count]
            for who, attack in peers.attacks(setting, epsilon, network, tuple(x.shape[1:])).items():
                place = verdicts.path(args.data, case_name, name, who)
                if verdicts.is_done(place, count) or (args.who and who not in args.who.split(",")):
                    continue
                peers.seeded()
                started = time.perf_counter()
                try:
                    attacked = peers.in_batches(attack, x, y)
                except Exception as error:  # a peer that fails on a case is a finding, not the end of the run
                    print(f"{case_name:28s} {name:16s} {who:18s} FAILED: {type(error).__name__}: {error}", flush=True)
                    continue
                seconds = time.perf_counter() - started
                with torch.no_grad():
                    right = (network(torch.nan_to_num(attacked)).argmax(1) == y).numpy()
                    clean = (network(x).argmax(1) == y).numpy()
                channels_last = [np.ascontiguousarray(t.numpy().transpose(0, 2, 3, 1)) for t in (x, attacked)]
                found = verdicts.judge(*channels_last, right, clean, setting.norm)
                verdicts.save(place, found, seconds)
                said = verdicts.line(found, epsilon, setting.minimum)
                print(f"{case_name:28s} {name:16s} {who:18s} {said}, {seconds:.1f} s, n={count}", flush=True)


if __name__ == "__main__":
    main()
