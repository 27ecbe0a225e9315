"""IMA on SVHN, L2: python -m jax_advtrain.data.prepare --name=svhn_cropped, then --config.data.data_dir=DIR.

Settings as published for CIFAR-10 (cifar10_ima.py): the paper has none for this set. No flip: digits have a side.
Not measured by us: no GPU, and not the data, were at hand.
"""

from jax_advtrain.config import base


def get_config():
    config = base("ima", "wide_resnet")
    config.data.name = "svhn_cropped"
    config.data.validation_size = 5000
    config.data.augment = ("reflect_pad_crop:4",)
    config.model.depth, config.model.width = 28, 4
    config.model.mean, config.model.std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    config.defense.norm = "l2"
    config.defense.eps_max = 3.0
    config.defense.delta = 0.03
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "piecewise"
    config.optimizer.boundaries, config.optimizer.values = (60, 90, 120), (0.09, 0.03, 0.009)
    config.epochs = 150
    config.monitor.every = 5
    config.monitor.epsilon = 1.0
    config.eval.epsilons_linf, config.eval.epsilons_l2 = (2 / 255, 4 / 255, 8 / 255), (0.25, 0.5, 1.0, 2.0)
    config.eval.num_samples = 1000
    return config
