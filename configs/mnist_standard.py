"""Standard training on MNIST: --config.data.data_dir=DIR.

Data, network, optimizer and evaluation as in mnist_ima.py. The figures of docs/index.md are of 10,000 training images.
"""

from jax_advtrain.config import base


def get_config():
    config = base("standard", "small_cnn")
    config.data.name = "mnist"
    config.data.validation_size = 5000
    config.epochs = 20
    config.monitor.epsilon = 0.1
    config.monitor.every = 5  # an attack costs many times a standard step
    config.eval.num_samples = 1000
    return config
