"""What the remedies for the weakest class reach on MNIST, around PGD-AT and IMA.

    python -m jax_advtrain.compare --config=configs/compare_mnist_worst_class.py --workdir=RUNS \\
        --config.base.data.data_dir=TFDS
    python benchmarks/remedies.py --runs=RUNS --config=configs/compare_mnist_worst_class.py

For each finished run of the grid the validation samples are attacked, which say which class is its weakest; for the two
methods without a remedy a correction of the logits is fitted there too (--mode=correct), and the corrected network
attacked anew on the test samples. Then a table: robust accuracy of all, and of the class that validation calls the
weakest, each with its difference from the method alone (95% by bootstrap over the test samples, seeds together).
Interrupted, it goes on where it was. Prints the table of benchmarks/results/remedies.md.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _timing import table

from jax_advtrain import command_line
from jax_advtrain import config as configs
from jax_advtrain.evaluation import results
from jax_advtrain.evaluation.paired import compare_pairs
from jax_advtrain.studies import correcting, evaluations, grid
from jax_advtrain.training import workdir

HELD_OUT = "pgd:num_steps=40, pgd:num_steps=40:loss=lm"
RESAMPLES = 2000
NORM = "linf"


class Found(NamedTuple):
    """One run on the test samples: which are right, clean and under attack; its weakest class on validation."""

    clean: np.ndarray
    robust: np.ndarray
    labels: np.ndarray
    weakest: int


def evaluated(config: Any, folder: Path, name: str, **fields: Any) -> dict[str, np.ndarray]:
    """The per-sample arrays of an evaluation, made where it is not there."""
    with config.unlocked():
        config.eval.update({"name": name, **fields})
    evaluations.evaluate_run(config, folder)
    return results.read_per_sample(folder / "eval" / name)


def of_run(run: grid.Run, asked: Any, correction: str) -> Found:
    epsilon = asked.base.eval.epsilons_linf[0]
    kept: Any = configs.from_plain(workdir.read_config(run.folder) or {})
    with kept.unlocked():
        kept.eval.update(configs.plain(asked.base.eval))
        kept.eval.correction = correction
    if correction:
        with kept.unlocked():
            kept.correction.update({"name": correction, "epsilon": epsilon, "most_loss": 0.01})
        correcting.correct_run(kept, run.folder)
    suffix = f"-{correction}" if correction else ""
    name = asked.base.eval.name
    test = evaluated(kept, run.folder, name + suffix)
    held_out = evaluated(
        kept, run.folder, f"{name}-validation{suffix}", split="validation", attacks=HELD_OUT, num_samples=None
    )

    def robust(found: dict[str, np.ndarray]) -> np.ndarray:
        return found[results.sample_key("prediction", NORM, epsilon)] == found["label"]

    by_class = [robust(held_out)[held_out["label"] == one].mean() for one in np.unique(held_out["label"])]
    clean = test["clean_prediction"] == test["label"]
    return Found(clean, robust(test), test["label"], int(np.argmin(by_class)))


def worst_difference(first: list[Found], second: list[Found]) -> tuple[float, float, float]:
    """Accuracy of each run's weakest class on validation, first - second, mean over seeds, and its 95% interval."""
    labels, rng = first[0].labels, np.random.default_rng(0)

    def value(counts: np.ndarray) -> float:
        def of(runs):
            return np.mean([np.average(r.robust, weights=counts * (labels == r.weakest)) for r in runs])

        return float(of(first) - of(second))

    drawn = [
        value(np.bincount(rng.integers(0, len(labels), len(labels)), minlength=len(labels))) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return value(np.ones(len(labels))), float(low), float(high)


def worst(found: Found) -> float:
    return float(found.robust[found.labels == found.weakest].mean())


def row(name: str, runs: list[Found], alone: list[Found] | None) -> list[str]:
    said = [
        name,
        str(len(runs)),
        f"{np.mean([run.clean.mean() for run in runs]):.3f}",
        f"{np.mean([run.robust.mean() for run in runs]):.3f}",
        " / ".join(f"{run.weakest}: {worst(run):.3f}" for run in runs),
        f"{np.mean([worst(run) for run in runs]):.3f}",
    ]
    if alone is None:
        return [*said, "", "", ""]
    change = worst_difference(runs, alone)
    mean = compare_pairs(np.array([run.robust for run in runs]), np.array([run.robust for run in alone]))
    reached = change[0] >= 0.03 and mean.difference >= -0.01
    return [
        *said,
        f"{100 * change[0]:+.1f} ({100 * change[1]:+.1f} to {100 * change[2]:+.1f})",
        f"{100 * mean.difference:+.1f} ({100 * mean.low:+.1f} to {100 * mean.high:+.1f})",
        "yes" if reached else "no",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="workdir of the comparison")
    parser.add_argument("--config", required=True, help="the grid's config file")
    parser.add_argument("--names", default="", help="methods of it, with commas; default: all")
    parser.add_argument("--seeds", default="", help="seeds of it, with commas; default: all")
    args = parser.parse_args()
    asked: Any = command_line.read_config(args.config, grids=True)
    with asked.unlocked():
        asked.names = tuple(args.names.split(",")) if args.names else tuple(asked.methods)
        asked.seeds = tuple(int(seed) for seed in args.seeds.split(",")) if args.seeds else tuple(asked.seeds)
        asked.reference = ""
    found: dict[str, dict[int, Found]] = {}
    for run in grid.runs(asked, args.runs):
        found.setdefault(run.method, {})[run.seed] = of_run(run, asked, "")
        if not run.config.classwise.name:
            found.setdefault(f"{run.method}_correction", {})[run.seed] = of_run(run, asked, "correction")
    alone = [name for name in found if f"{name}_correction" in found]
    rows = []
    for name, by_seed in found.items():
        base = None if name in alone else found[max((one for one in alone if name.startswith(one)), key=len)]
        seeds = sorted(by_seed)
        beside = None if base is None else [base[seed] for seed in seeds]
        rows.append(row(name, [by_seed[seed] for seed in seeds], beside))
    head = ["method", "seeds", "clean", "robust", "weakest class a seed", "its mean", "weakest, points (95%)"]
    print(table([*head, "robust, points (95%)", "+3 at -1 at most"], rows))


if __name__ == "__main__":
    main()
