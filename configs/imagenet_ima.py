"""IMA on ImageNet, L-inf: one radius for each of 1.28 million training images. --config.data.data_dir=DIR

Prepare the data, without TensorFlow, from the two archives that https://image-net.org gives with an account:
python -m jax_advtrain.data.prepare --name=imagenet2012 --data_dir=DIR --manual_dir=DOWNLOADS (144 GB more).
ResNet-50 in bfloat16, RandomResizedCrop and flip, evaluation on the centre 224x224 of images resized to 256. Ceiling
8/255, twice the radius at which ImageNet is compared; 10 attack steps; SGD as Salman et al. (2020) train PGD-AT. Start
from clean weights (--config.init_from=FOLDER, e.g. converted from torchvision's) to save most epochs. The IMA paper has
no ImageNet run. Not measured by us: no GPU, and not the data, were at hand; the pipeline's speed is in
benchmarks/results/input.md.
"""

from jax_advtrain.config import base


def get_config():
    config = base("ima", "resnet")
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"  # TFDS's test split has no labels
    config.data.validation_from, config.data.validation_size = "train", 5000
    config.data.num_test = 5000  # as many as RobustBench's; the order of a TFDS set is random
    config.data.image_size, config.data.resize = 224, 256
    config.data.augment = ("random_resized_crop", "flip")
    config.model.depth, config.model.stem, config.model.dtype = 50, "imagenet", "bfloat16"
    config.model.mean, config.model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.defense.norm = "linf"
    config.defense.eps_max = 8 / 255
    config.defense.delta = 0.5 / 255
    config.defense.num_steps = 10
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "piecewise"
    config.optimizer.boundaries, config.optimizer.values = (30, 60), (0.01, 0.001)
    config.batch_size = 512
    config.epochs = 90
    config.monitor.every = 5
    config.monitor.epsilon = 4 / 255
    config.eval.attacks = "pgd:num_steps=100:alpha=4.0, pgd:num_steps=100:alpha=4.0:loss=lm"
    config.eval.epsilons_linf, config.eval.epsilons_l2 = (1 / 255, 2 / 255, 4 / 255, 8 / 255), ()
    return config
