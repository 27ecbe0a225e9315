"""TRADES (Zhang et al. 2019) on hippocampus MRI, L2 radius 1: --config.data.data_dir=FOLDER.

Data, network, optimizer and evaluation as in hippocampus_standard.py. KL is the mean over pixels; 5 attack steps.

Measured with --config.init_from=runs/hippocampus_standard: 15 minutes of one core; Dice 0.801, under the worst of three
attacks at L2 1 0.638 (benchmarks/results/segmentation.md).
"""

from jax_advtrain.config import base


def get_config():
    config = base("trades", "unet")
    config.data.name, config.data.source = "hippocampus", "decathlon"
    config.data.slices, config.data.image_size = 1, 40
    config.data.test_size, config.data.validation_size = 52, 12
    config.data.num_train, config.data.validation_from = 72, "train"
    config.data.augment = ("rotate:15", "scale:0.15", "gamma:0.3")
    config.model.width, config.model.levels = 8, 4
    config.dice_threshold = 0.6
    config.defense.norm, config.defense.epsilon = "l2", 1.0
    config.defense.num_steps, config.defense.alpha, config.defense.beta = 5, 2.5, 6.0
    config.defense.warmup_epochs = 5
    config.batch_size = 32
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.clip_norm = 1.0
    config.epochs = 16
    config.monitor.every, config.monitor.num_samples = 4, 4
    config.monitor.norm, config.monitor.epsilon = "l2", 1.0
    config.monitor.attacks = "pgd:num_steps=10:alpha=4.0"
    config.eval.after_training = "last"
    config.eval.attacks = "fgsm, ifgsm:num_steps=10, pgd:num_steps=10:alpha=4.0"
    config.eval.epsilons_l2, config.eval.epsilons_linf = (0.5, 1.0, 2.0), (0.01, 0.025, 0.05)
    config.eval.num_samples = 26
    config.margins.norm, config.margins.radii = "l2", (0.25, 0.5, 1.0, 2.0, 4.0)
    config.margins.num_steps, config.margins.num_samples = 10, 12
    return config
