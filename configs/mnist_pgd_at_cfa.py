"""PGD adversarial training with class-wise radii and fair weight averaging (CFA) on MNIST: --config.data.data_dir=DIR.

Everything else as in mnist_pgd_at.py. The class-wise radii begin when its warm-up is over; the best checkpoint is
that of the best sum of mean and worst class, as the authors of CFA choose it.
"""

from jax_advtrain.config import base


def get_config():
    config = base("pgd_at", "small_cnn", "cfa")
    config.data.name = "mnist"
    config.data.validation_size = 5000
    config.defense.norm = "linf"
    config.defense.epsilon = 0.3
    config.defense.warmup_epochs = 10
    config.epochs = 20
    config.monitor.epsilon = 0.2
    config.monitor.num_samples = 1000
    config.checkpoint.best_by = "sum"
    config.eval.num_samples = 1000
    return config
