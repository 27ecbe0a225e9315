"""All defenses on PneumoniaMNIST: --config.base.data.path=FILE, MedMNIST's npz.

Standard, PGD-AT, TRADES, MART and IMA with 3 seeds, the others with 1.

Two classes; measured on a copy with 3,882 of the 4,708 training images, nine of pneumonia to one of none: balanced
accuracy, sensitivity, specificity, AUROC and calibration are rows of the table. A radius that grows, and a checkpoint
by mean plus worst class: otherwise the constant classifier, which is robust at any radius, wins.

Measured: benchmarks/results/compare_pneumonia.md, about 40 minutes of one core in all.
"""

from jax_advtrain.config import base
from jax_advtrain.studies.grid import grid

SEEDS = (0, 1, 2)
FIXED = {"epsilon": 0.02, "warmup_epochs": 8}


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
            "standard": {"monitor": {"every": 5}, "seeds": SEEDS},
            "pgd_at": {"defense": FIXED, "seeds": SEEDS},
            "trades": {"defense": FIXED, "seeds": SEEDS},
            "mart": {"defense": FIXED, "seeds": SEEDS},
            "ima": {"defense": {"eps_max": 0.04, "delta": 0.004}, "seeds": SEEDS},
            "fat": {"defense": {**FIXED, "tau_epochs": (4, 8)}},
            "gairat": {"defense": {**FIXED, "burn_in_epochs": 4}},
            "fast_at": {"defense": FIXED},
            "n_fgsm": {"defense": FIXED},
            "iaat": {"defense": {"eps_max": 0.02, "eps_start": 0.002, "gamma": 0.002}},
            "mma": {"defense": {"d_max": 0.04, "eps_start": 0.01}},
            "ame": {"defense": {"delta": 0.004}},
            "awp": {"defense": {"name": "pgd_at", **FIXED, "awp_gamma": 0.01, "awp_warmup_epochs": 4}},
        },
    )
    compared.reference = "ima"
    compared.autoattack.epsilons_linf = (0.02,)
    compared.autoattack.num_samples = 500
    return compared
