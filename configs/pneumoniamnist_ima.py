"""IMA on PneumoniaMNIST, chest X-rays of two classes, few of one: --config.data.path=FILE, MedMNIST's npz.

A start for medical images of your own: small radii, and the checkpoint whose mean and worst class together are best.

Measured with 3 seeds (compare_pneumonia.py), on a copy with 3,882 of the 4,708 training images: 0.794 clean (balanced
0.731), worst of six attacks 0.673 at 0.02 and 0.388 at 0.05 (benchmarks/results/compare_pneumonia.md).
"""

from jax_advtrain.config import base


def get_config():
    config = base("ima", "small_cnn")
    config.data.name = "pneumoniamnist"
    config.data.path = "pneumoniamnist.npz"
    config.model.channels = (16, 32)
    config.model.hidden = (64,)
    config.defense.norm = "linf"
    config.defense.eps_max = 0.04
    config.defense.delta = 0.004
    config.epochs = 12
    config.monitor.epsilon = 0.02
    config.checkpoint.best_by = "sum"
    config.eval.epsilons_linf = (0.01, 0.02, 0.03, 0.05)
    config.eval.epsilons_l2 = ()
    return config
