"""PGD adversarial training (Madry et al.) on MNIST, L-inf 0.3: --config.data.data_dir=DIR.

Data, network, optimizer and evaluation as in mnist_ima.py. The radius grows over the first 10 epochs: at 0.3 from the
first on, seed 0 stayed at chance (10,000 images, 20 epochs).
"""

from jax_advtrain.config import base


def get_config():
    config = base("pgd_at", "small_cnn")
    config.data.name = "mnist"
    config.data.validation_size = 5000
    config.defense.norm = "linf"
    config.defense.epsilon = 0.3
    config.defense.warmup_epochs = 10
    config.epochs = 20
    config.monitor.epsilon = 0.2
    config.eval.num_samples = 1000
    return config
