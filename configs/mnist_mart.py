"""MART (Wang et al. 2020) on MNIST, L-inf 0.3: --config.data.data_dir=DIR.

The first 10,000 training images; network, optimizer and evaluation as in mnist_pgd_at.py.

Measured with 10,000 training images and a quarter of the network (3 seeds, compare_mnist.py): 0.960 clean, worst of
six attacks 0.876 at 0.2 and 0.768 at 0.3 (benchmarks/results/compare_mnist.md).
"""

from jax_advtrain.config import base


def get_config():
    config = base("mart", "small_cnn")
    config.data.name = "mnist"
    config.data.num_train = 10_000
    config.data.validation_size = 5000
    config.defense.norm = "linf"
    config.defense.epsilon = 0.3
    config.defense.beta = 5.0
    config.defense.warmup_epochs = 10
    config.epochs = 20
    config.monitor.epsilon = 0.2
    config.eval.num_samples = 1000
    return config
