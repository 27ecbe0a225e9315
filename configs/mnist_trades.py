"""TRADES (Zhang et al. 2019) on MNIST, L-inf 0.3: --config.data.data_dir=DIR.

The first 10,000 training images; network, optimizer and evaluation as in mnist_pgd_at.py.

Not measured to the end. After 8 of the 20 epochs (radius 0.24 then): 0.971 clean and 0.825 at 0.2 under the monitor's
attacks, on 200 validation images.
"""

from jax_advtrain.config import base


def get_config():
    config = base("trades", "small_cnn")
    config.data.name = "mnist"
    config.data.num_train = 10_000
    config.data.validation_size = 5000
    config.defense.norm = "linf"
    config.defense.epsilon = 0.3
    config.defense.beta = 1.0
    config.defense.warmup_epochs = 10
    config.epochs = 20
    config.monitor.epsilon = 0.2
    config.eval.num_samples = 1000
    return config
