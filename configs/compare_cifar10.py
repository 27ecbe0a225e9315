"""Standard, PGD-AT, TRADES and IMA on CIFAR-10, L-inf 8/255, on a laptop: --config.base.data.data_dir=DIR.

The small CNN on the first 10,000 training images, one seed: nothing to stand beside the papers, whose networks are a
hundred times as large.

Measured: benchmarks/results/compare_cifar10.md, about 25 minutes of one core in all.
"""

from jax_advtrain.config import base
from jax_advtrain.studies.grid import grid


def get_config():
    config = base("standard", "small_cnn")
    config.data.name = "cifar10"
    config.data.num_train = 10_000
    config.data.validation_size = 2000
    config.data.augment = ("reflect_pad_crop:4", "flip")
    config.model.channels = (16, 32)
    config.model.hidden = (64,)
    config.epochs = 20
    config.monitor.epsilon = 4 / 255
    config.eval.num_samples = 1000
    config.eval.attacks = "fgsm, pgd:num_steps=40:alpha=4.0, pgd:num_steps=40:alpha=4.0:loss=lm"
    config.eval.epsilons_linf = (2 / 255, 4 / 255, 8 / 255)
    config.eval.epsilons_l2 = ()
    compared = grid(
        config,
        {
            "standard": {"monitor": {"every": 5}},
            "pgd_at": {"defense": {"epsilon": 8 / 255, "warmup_epochs": 10}},
            "trades": {"defense": {"epsilon": 8 / 255}},
            "ima": {"defense": {"eps_max": 8 / 255, "delta": 1 / 255}},
        },
    )
    compared.reference = "ima"
    compared.autoattack.epsilons_linf = (4 / 255,)
    compared.autoattack.num_samples = 500
    return compared
