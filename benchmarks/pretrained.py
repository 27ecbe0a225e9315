"""IMA from scratch against clean training first and IMA after: epochs and seconds until the same robust accuracy.

    python benchmarks/pretrained.py --data_dir=TFDS --out=runs/pretrained

The IMA paper's claim that a pretrained model saves epochs, on a laptop: MNIST (10,000 images, L-inf, ceiling
0.3, as configs/mnist_ima.py) and CIFAR-10 (5,000 images, L2, ceiling 0.5), both with the small CNN. Clean training is
`standard` at the same optimizer; IMA then takes its last weights by `init_from`, with new margins. Robust accuracy is
that of 1,000 validation images after each epoch (PGD-10 on cross entropy and on the logit margin, the worse a sample).
Interrupted, it goes on where it was. Prints the tables that are committed as benchmarks/results/pretrained.md.
"""

import argparse
from pathlib import Path
from typing import Any

from jax_advtrain.config import base
from jax_advtrain.evaluation import results
from jax_advtrain.studies.runs import train_and_evaluate
from jax_advtrain.training import workdir

# The last is where the share of both runs' best is nearly reached; the first ones tell how they get there.
SHARES = (0.5, 0.75, 0.9, 0.95)
CLEAN, SCRATCH, PRETRAINED = "clean", "scratch", "pretrained"
# What the two sets differ in.
SETTINGS = {
    "mnist": {
        "norm": "linf",
        "eps_max": 0.3,
        "delta": 0.03,
        "monitored": 0.2,
        "evaluated": (0.1, 0.2, 0.3),
        "num_train": 10000,
        "num_evaluated": 1000,
        "epochs": {CLEAN: 5, SCRATCH: 12, PRETRAINED: 8},
        "augment": (),
    },
    "cifar10": {
        "norm": "l2",
        "eps_max": 0.5,
        "delta": 0.05,
        "monitored": 0.5,
        "evaluated": (0.25, 0.5, 1.0),
        "num_train": 5000,
        "num_evaluated": 200,
        "epochs": {CLEAN: 15, SCRATCH: 12, PRETRAINED: 8},
        "augment": ("flip",),
    },
}


def config_of(name: str, role: str, seed: int, out: Path, data_dir: str) -> Any:
    settings = SETTINGS[name]
    config = base("standard" if role == CLEAN else "ima", "small_cnn")
    config.seed = seed
    config.data.name, config.data.data_dir = name, data_dir
    config.data.num_train, config.data.validation_size = settings["num_train"], 1000
    config.data.augment = settings["augment"]
    config.epochs = settings["epochs"][role]
    if role != CLEAN:
        config.defense.norm = settings["norm"]
        config.defense.eps_max, config.defense.delta = settings["eps_max"], settings["delta"]
    if role == PRETRAINED:
        config.init_from = str(out / f"{name}-{CLEAN}-{seed}" / "checkpoints" / "last")
    config.monitor.norm, config.monitor.epsilon, config.monitor.num_samples = (
        settings["norm"],
        settings["monitored"],
        1000,
    )
    config.eval.after_training = "last"
    config.eval.attacks = "pgd:num_steps=40:alpha=10.0, pgd:num_steps=40:alpha=10.0:loss=lm"
    config.eval.epsilons_linf, config.eval.epsilons_l2 = (), ()
    config.eval[f"epsilons_{settings['norm']}"] = settings["evaluated"]
    config.eval.num_samples, config.eval.figures = settings["num_evaluated"], 0
    return config


def reached(lines: list[dict[str, Any]], target: float) -> int:
    """Epochs of training until the robust accuracy on validation first is the target."""
    return next(line["epoch"] for line in lines if line["validation"]["robust_accuracy"] >= target)


def rows_of(name: str, seed: int, lines: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """One row a target: IMA's epochs, and seconds, until either way reached it."""
    best = {role: max(one["validation"]["robust_accuracy"] for one in lines[role]) for role in (SCRATCH, PRETRAINED)}
    # The least of all epochs: the machine is shared, and both ways run the same program.
    of_ima = min(line["seconds"] for role in (SCRATCH, PRETRAINED) for line in lines[role])
    before = len(lines[CLEAN]) * min(line["seconds"] for line in lines[CLEAN])
    rows = []
    for share in SHARES:
        target = share * min(best.values())  # both get there
        epochs = {role: reached(lines[role], target) for role in (SCRATCH, PRETRAINED)}
        seconds = {SCRATCH: epochs[SCRATCH] * of_ima, PRETRAINED: epochs[PRETRAINED] * of_ima + before}
        cells = [f"{epochs[role]} / {seconds[role]:.0f} s" for role in (SCRATCH, PRETRAINED)]
        rows.append([name, str(seed), f"{target:.3f} ({share:.0%})", *cells])
    return rows


def final_row(name: str, role: str, seed: int, lines: list[dict[str, Any]], found: dict[str, Any]) -> list[str]:
    by_place = {(r["attack"], r["epsilon"]): r["correct"] / r["n"] for r in found["records"]}
    clean = by_place["clean", 0.0]
    worst = [by_place["worst-of", epsilon] for epsilon in SETTINGS[name]["evaluated"]]
    seconds = min(line["seconds"] for line in lines)
    radii = " / ".join(f"{value:.3f}" for value in worst)
    return [name, role, str(seed), str(len(lines)), f"{seconds:.1f}", f"{clean:.3f}", radii]


def table(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--sets", default="mnist,cifar10")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    out = Path(args.out).absolute()
    head = ["set", "seed", "robust accuracy", "from scratch", "clean training first (its seconds counted in)"]
    times = [head]
    finals = [["set", "training", "seed", "epochs", "least s an epoch", "clean", "worst of both at the three radii"]]
    courses = []
    for name in args.sets.split(","):
        for seed in range(args.seeds):
            lines = {}
            for role in (CLEAN, SCRATCH, PRETRAINED):
                folder = out / f"{name}-{role}-{seed}"
                train_and_evaluate(config_of(name, role, seed, out, args.data_dir), folder)
                lines[role] = workdir.read_metrics(folder)
                finals.append(final_row(name, role, seed, lines[role], results.read_results(folder / "eval" / "last")))
                accuracies = [line["validation"]["robust_accuracy"] for line in lines[role]]
                courses.append(f"- {name}, {role}, seed {seed}: " + " ".join(f"{value:.3f}" for value in accuracies))
            times += rows_of(name, seed, lines)
    print(table(times), table(finals), "\n".join(courses), sep="\n\n")


if __name__ == "__main__":
    main()
