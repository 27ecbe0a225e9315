"""Remedies for the weakest class on MNIST, around PGD-AT and IMA, L-inf 0.3: --config.base.data.data_dir=DIR.

The first 10,000 training images, 3 seeds, all 10,000 test images, worst of two PGD-100. The network is a quarter of
small_cnn (105,866 parameters), so that the whole runs on 2 cores. benchmarks/remedies.py makes a table of the runs.

Measured (but for frl): benchmarks/results/remedies.md.
"""

from jax_advtrain.config import base
from jax_advtrain.studies.grid import grid


def get_config():
    config = base("standard", "small_cnn")
    config.data.name = "mnist"
    config.data.num_train = 10_000
    config.data.validation_size = 5000
    config.model.channels = (16, 32)
    config.model.hidden = (64,)
    config.epochs = 20
    config.monitor.epsilon = 0.3
    config.monitor.num_samples = 1000
    config.eval.name = "worst_class"
    config.eval.attacks = "pgd:num_steps=100:alpha=4.0, pgd:num_steps=100:alpha=4.0:loss=lm"
    config.eval.epsilons_linf = (0.3,)
    config.eval.epsilons_l2 = ()
    methods = {}
    for name in ("pgd_at", "ima"):
        methods[name] = {"config": f"mnist_{name}.py"}
        for remedy in ("reweight", "cfa", "frl"):
            methods[f"{name}_{remedy}"] = {
                "config": f"mnist_{name}.py",
                "classwise": {"name": remedy},
                "checkpoint": {"best_by": "sum"},
            }
    compared = grid(config, methods)
    compared.seeds = (0, 1, 2)
    compared.reference = "pgd_at"
    return compared
