"""PGD adversarial training (Madry et al.) on MNIST, L-inf 0.3: --config.data.data_dir=DIR.

Data, network, optimizer and evaluation as in mnist_ima.py. At this radius training may stay at chance (loss 2.30):
seed 0 did on 10,000 images for 20 epochs. Then try another seed, or a smaller radius.
"""

from jax_advtrain.config import base


def get_config():
    config = base("pgd_at", "small_cnn")
    config.data.name = "mnist"
    config.data.validation_size = 5000
    config.defense.norm = "linf"
    config.defense.epsilon = 0.3
    config.epochs = 20
    config.monitor.epsilon = 0.2
    config.eval.num_samples = 1000
    return config
