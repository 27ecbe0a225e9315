"""IMA on Heart MRI (left atrium), Medical Segmentation Decathlon Task02: --config.data.data_dir=FOLDER/Task02_Heart.

2D slices. 20 cases of 320 x 320 x 90 to 130 voxels, one modality: 12 train, 3 validate, 5 test.

Radii are guesses: those of the hippocampus a voxel (L2 r is r / 320 for each voxel of a slice, spread evenly), to be
set from the margins of a standard model (docs/segmentation.md). Attack steps and bisections are the published ones. Not
run: nobody here has the data; the sizes are those that the decathlon's authors give.
"""

from jax_advtrain.config import base


def get_config():
    config = base("ima", "unet")
    config.data.name, config.data.source = "heart", "decathlon"
    config.data.slices, config.data.image_size = 2, (320, 320)
    config.data.test_size, config.data.validation_size = 5, 3
    config.data.num_train, config.data.validation_from = 15, "train"
    config.data.augment = ("rotate:15", "scale:0.15", "gamma:0.3")
    config.model.width, config.model.levels = 16, 6
    config.dice_threshold = 0.6
    config.defense.norm = "l2"
    config.defense.eps_max, config.defense.delta = 10.0, 1.0
    config.defense.num_steps, config.defense.refine_steps = 20, 10
    config.defense.attack_loss = "task"
    config.defense.inside_is_clean = config.defense.outside_is_final = config.defense.only_hit = False
    config.batch_size = 16
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.clip_norm = 1.0
    config.epochs = 40
    config.monitor.every, config.monitor.num_samples = 4, 3
    config.monitor.norm, config.monitor.epsilon = "l2", 8.0
    config.monitor.attacks = "pgd:num_steps=10:alpha=4.0"
    config.eval.after_training = "best"
    config.eval.attacks = "fgsm, ifgsm:num_steps=10, pgd:num_steps=20:alpha=4.0"
    config.eval.epsilons_l2, config.eval.epsilons_linf = (4.0, 8.0, 16.0), (0.01, 0.025, 0.05)
    config.eval.num_samples = 5
    config.margins.norm, config.margins.radii = "l2", (2.0, 4.0, 8.0, 16.0, 32.0)
    config.margins.num_steps, config.margins.num_samples = 10, 3
    return config
