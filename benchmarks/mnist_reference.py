"""Ours against the figures of the official IMA code on MNIST: same data, network, attack, training length.

    python benchmarks/mnist_reference.py --data_dir=TFDS --order=mnist_order.npz --out=runs/mnist_reference

First 10,000 original training images, validation from the others, strided small CNN (421,642 parameters), 20 epochs,
Adam 1e-3, batch 128, L-inf; IMA (ceiling 0.3, delta 0.03), PGD-AT (0.3, grown over the first 10 epochs: from the first
on training may stay at chance), standard, 3 seeds each. Evaluated on the first 2,000 original test images: PGD-100 with
cross entropy, one random start (what the official figures are), with the logit margin (40 larger steps), and the per-
sample worst case. Interrupted, it goes on where it was. Prints the table that is committed as
benchmarks/results/mnist_reference.md.
"""

import argparse
from pathlib import Path

import numpy as np

from jax_advtrain.config import base
from jax_advtrain.evaluation import results
from jax_advtrain.studies.runs import train_and_evaluate

# Clean, L-inf 0.05, 0.1, 0.2, 0.3, L2 0.5, 1, 2 of the official PyTorch code (IMA: mean of 3 seeds; others: 1 seed).
OFFICIAL = {
    "ima": (0.969, 0.952, 0.926, 0.832, 0.620, 0.939, 0.879, 0.567),
    "pgd_at": (0.898, 0.872, 0.842, 0.761, 0.659, 0.830, 0.753, 0.551),
    "standard": (0.968, 0.755, 0.181, 0.001, 0.0, None, None, None),
}
LINF, L2 = (0.05, 0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
COLUMNS = [("clean", None, 0.0), *(("linf", "linf", e) for e in LINF), *(("l2", "l2", e) for e in L2)]


def config_of(method: str, seed: int, args: argparse.Namespace):
    order = np.load(args.order)
    config = base(method, "small_cnn")
    config.seed = seed
    config.data.name = "mnist"
    config.data.data_dir = args.data_dir
    config.data.train_ids = order["train"][: args.num_train].tolist()
    config.data.validation_size = 2000
    config.data.test_ids = order["test"][:2000].tolist()
    config.epochs = args.epochs
    if method == "pgd_at":
        config.defense.warmup_epochs = 10
    config.monitor.epsilon = 0.2
    config.monitor.every = 1 if method != "standard" else 5
    config.eval.after_training = "last"
    config.eval.attacks = "pgd:num_steps=100:alpha=2.5, pgd:num_steps=40:alpha=10.0:loss=lm"
    config.eval.epsilons_linf, config.eval.epsilons_l2 = LINF, L2
    return config


def accuracies(found, attack: str) -> list[float]:
    by_place = {(r["attack"], r["norm"], r["epsilon"]): r["correct"] / r["n"] for r in found["records"]}
    return [by_place[("clean", None, 0.0) if norm is None else (attack, norm, e)] for _, norm, e in COLUMNS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--order", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--num_train", type=int, default=10000)
    parser.add_argument("--methods", default="ima,standard,pgd_at")
    args = parser.parse_args()
    head = ["method", "attack", *(f"{name} {e:g}" if e else name for name, _, e in COLUMNS)]
    rows = [head, ["---"] * len(head)]
    for method in args.methods.split(","):
        rows.append([method, "official, PGD-100 ce", *("-" if v is None else f"{v:.3f}" for v in OFFICIAL[method])])
        found = []
        for seed in range(args.seeds):
            folder = Path(args.out) / f"{method}-{seed}"
            if not (folder / "eval" / "last" / "results.json").exists():
                train_and_evaluate(config_of(method, seed, args), folder)
            found.append(results.read_results(folder / "eval" / "last"))
        for attack, label in (
            ("pgd-100-ce", "PGD-100 ce"),
            ("pgd-40-lm", "PGD-40 lm"),
            ("worst-of", "worst of both"),
        ):
            values = np.array([accuracies(one, attack) for one in found])
            spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
            cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(axis=0), spread, strict=True)]
            rows.append([method, f"ours ({len(values)} seeds), {label}", *cells])
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))


if __name__ == "__main__":
    main()
