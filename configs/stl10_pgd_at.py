"""PGD adversarial training (Madry et al.) on STL-10, L-inf 8/255: --config.data.data_dir=DIR.

PreActResNet-18, PGD-10 with step 2/255, SGD 0.1 divided by 10 at epochs 100 and 150 of 200 (Rice et al. 2020, whose
robust overfitting the best checkpoint, picked on validation images, avoids). Prepare the data with
python -m jax_advtrain.data.prepare --name=stl10. Not measured by us: no GPU, and not the data, were at hand.
"""

from jax_advtrain.config import base


def get_config():
    config = base("pgd_at", "preact_resnet")
    config.data.name = "stl10"
    config.data.validation_size = 500
    config.data.augment = ("reflect_pad_crop:12", "flip")
    config.model.mean, config.model.std = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
    config.defense.norm = "linf"
    config.defense.epsilon = 8 / 255
    config.defense.num_steps = 10
    config.defense.alpha = 2.5
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "piecewise"
    config.optimizer.boundaries, config.optimizer.values = (100, 150), (0.01, 0.001)
    config.epochs = 200
    config.monitor.every = 5
    config.eval.epsilons_linf, config.eval.epsilons_l2 = (2 / 255, 4 / 255, 8 / 255), (0.75, 1.5, 3.0, 6.0)
    config.eval.num_samples = 1000
    return config
