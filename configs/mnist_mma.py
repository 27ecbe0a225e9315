"""MMA (Ding et al. 2020), each sample at its own boundary, on MNIST, L-inf: --config.data.data_dir=DIR.

The first 10,000 training images; network, optimizer and evaluation as in mnist_pgd_at.py.

Not measured.
"""

from jax_advtrain.config import base


def get_config():
    config = base("mma", "small_cnn")
    config.data.name = "mnist"
    config.data.num_train = 10_000
    config.data.validation_size = 5000
    config.defense.norm = "linf"
    config.defense.d_max = 0.4
    config.epochs = 20
    config.monitor.epsilon = 0.2
    config.eval.num_samples = 1000
    return config
