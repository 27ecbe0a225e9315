"""Standard, PGD-AT, TRADES, MART and IMA on PneumoniaMNIST: --config.base.data.path=FILE, MedMNIST's npz.

Two classes, nine images of pneumonia to one of none in training: balanced accuracy, sensitivity, specificity, AUROC and
calibration are rows of the table. A radius that grows, and a checkpoint by mean plus worst class: otherwise the
constant classifier, which is robust at any radius, wins.

Measured: benchmarks/results/compare_pneumonia.md, about 30 minutes of one core in all.
"""

from jax_advtrain.config import base
from jax_advtrain.studies.grid import grid


def get_config():
    config = base("standard", "small_cnn")
    config.data.name = "pneumoniamnist"
    config.data.path = "pneumoniamnist.npz"
    config.model.channels = (16, 32)
    config.model.hidden = (64,)
    config.epochs = 12
    config.monitor.epsilon = 0.02
    config.checkpoint.best_by = "sum"
    config.eval.attacks = (
        "fgsm, ifgsm:num_steps=10, pgd:num_steps=10:alpha=4.0, pgd:num_steps=10:alpha=4.0:loss=lm,"
        " pgd:num_steps=100:alpha=4.0, pgd:num_steps=100:alpha=4.0:loss=lm"
    )
    config.eval.epsilons_linf = (0.01, 0.02, 0.03, 0.05)
    config.eval.epsilons_l2 = ()
    compared = grid(
        config,
        {
            "standard": {"monitor": {"every": 5}},
            "pgd_at": {"defense": {"epsilon": 0.02, "warmup_epochs": 8}},
            "trades": {"defense": {"epsilon": 0.02, "warmup_epochs": 8}},
            "mart": {"defense": {"epsilon": 0.02, "warmup_epochs": 8}},
            "ima": {"defense": {"eps_max": 0.04, "delta": 0.004}},
        },
    )
    compared.seeds = (0, 1, 2)
    compared.reference = "ima"
    compared.autoattack.epsilons_linf = (0.02,)
    compared.autoattack.num_samples = 500
    return compared
