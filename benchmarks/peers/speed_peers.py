"""The child of `speed.py` in the peers' environment: answers each line with a number of seconds or with names.

Lines in: {"names": [kind, norm, steps, epsilon]} -> names of the packages; {"run": [name, kind, norm, steps, epsilon]}
-> seconds of one run on all images and how many it fooled. Arguments: the npz of `networks.save`, threads.
"""

import json
import sys
import time

import peers
import torch
import torch_models
from settings import Setting


def main() -> None:
    path, threads = sys.argv[1:]
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the packages print
    torch.set_num_threads(int(threads))
    network, images, labels = torch_models.load(path)
    known = {}
    for line in sys.stdin:
        ((question, values),) = json.loads(line).items()
        name, (kind, norm, steps, epsilon) = ("", values) if question == "names" else (values[0], values[1:])
        if (kind, norm, steps, epsilon) not in known:
            setting = Setting(kind, norm, steps, False, 0)
            known[kind, norm, steps, epsilon] = peers.attacks(setting, epsilon, network, tuple(images.shape[1:]))
        attacks = known[kind, norm, steps, epsilon]
        answer = list(attacks)
        if question == "run":
            peers.seeded()
            started = time.perf_counter()
            attacked = peers.in_batches(attacks[name], images, labels, len(images))
            seconds = time.perf_counter() - started
            with torch.no_grad():
                answer = [seconds, int((network(attacked).argmax(1) != labels).sum())]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
