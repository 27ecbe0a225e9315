"""IMA on STL-10, L2: python -m jax_advtrain.data.prepare --name=stl10, then --config.data.data_dir=DIR.

Settings as published for CIFAR-10 (cifar10_ima.py): the paper has none for this set. Images are 96x96, so radii in L2
are 3 times as long.
Not measured by us: no GPU, and not the data, were at hand.
"""

from jax_advtrain.config import base


def get_config():
    config = base("ima", "wide_resnet")
    config.data.name = "stl10"
    config.data.validation_size = 500
    config.data.augment = ("reflect_pad_crop:12", "flip")
    config.model.depth, config.model.width = 28, 4
    config.model.mean, config.model.std = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
    config.defense.norm = "l2"
    config.defense.eps_max = 9.0
    config.defense.delta = 0.09
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "piecewise"
    config.optimizer.boundaries, config.optimizer.values = (60, 90, 120), (0.09, 0.03, 0.009)
    config.epochs = 150
    config.monitor.every = 5
    config.monitor.epsilon = 3.0
    config.eval.epsilons_linf, config.eval.epsilons_l2 = (2 / 255, 4 / 255, 8 / 255), (0.75, 1.5, 3.0, 6.0)
    config.eval.num_samples = 1000
    return config
