"""IAAT (Balaji et al. 2019), a radius a sample, on MNIST, L-inf up to 0.3: --config.data.data_dir=DIR.

The first 10,000 training images; network, optimizer and evaluation as in mnist_pgd_at.py.

Measured with 10,000 training images and a quarter of the network (one seed, compare_mnist.py): 0.975 clean, worst of
six attacks 0.764 at 0.2 and 0.066 at 0.3 (benchmarks/results/compare_mnist.md).
"""

from jax_advtrain.config import base


def get_config():
    config = base("iaat", "small_cnn")
    config.data.name = "mnist"
    config.data.num_train = 10_000
    config.data.validation_size = 5000
    config.defense.norm = "linf"
    config.defense.eps_max = 0.3
    config.defense.eps_start = 0.03
    config.defense.gamma = 0.03
    config.epochs = 20
    config.monitor.epsilon = 0.2
    config.eval.num_samples = 1000
    return config
