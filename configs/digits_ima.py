"""IMA on scikit-learn's 8x8 digits: the first command, no data or network needed.

Under 3 minutes on 2 cores.
"""

from jax_advtrain.config import base


def get_config():
    config = base("ima", "small_cnn")
    config.data.name = "digits"
    config.model.channels = (16, 32)
    config.model.hidden = (64,)
    config.defense.eps_max = 0.2
    config.defense.delta = 0.01
    config.epochs = 40
    config.batch_size = 64
    config.optimizer.learning_rate = 2e-3
    config.monitor.num_samples = 180
    config.monitor.epsilon = 0.1
    config.eval.epsilons_linf = (0.05, 0.1, 0.15, 0.2)
    config.eval.epsilons_l2 = (0.25, 0.5, 1.0)
    return config
