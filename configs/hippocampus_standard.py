"""Standard training on hippocampus MRI, 2D: --config.data.data_dir=FOLDER/Task04_Hippocampus.

Medical Segmentation Decathlon, Task04: 260 cases of about 36 x 50 x 36 voxels of 1 mm. Coronal slices (axis 1), padded
to 40 x 40; 60 cases train (about 2,970 slices), 12 validate, 52 test, of which the first 26 are attacked. A small U-Net
(width 8, 4 levels, 121,219 weights), soft Dice + cross entropy.

Radii: pixel units of [0, 1], which are percentiles 0.5 to 99.5 of a volume's intensities. L2 r is r / 40 for each voxel
of a slice where it is spread evenly (0.5, 1, 2: 0.0125, 0.025, 0.05), L-inf is the change of each voxel.

40 epochs take 4.8 minutes on 2 quiet cores; mean foreground Dice on 26 held-out cases 0.862 (0.837 to 0.880), under the
worst of three attacks at L2 1 0.370 (benchmarks/results/segmentation.md).
"""

from jax_advtrain.config import base


def get_config():
    config = base("standard", "unet")
    config.data.name, config.data.source = "hippocampus", "decathlon"
    config.data.slices, config.data.image_size = 1, 40
    config.data.test_size, config.data.validation_size = 52, 12
    config.data.num_train, config.data.validation_from = 72, "train"
    config.data.augment = ("rotate:15", "scale:0.15", "gamma:0.3")
    config.model.width, config.model.levels = 8, 4
    config.dice_threshold = 0.6
    config.batch_size = 32
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.clip_norm = 1.0
    config.epochs = 40
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
