"""PGD adversarial training (Madry et al.) on ImageNet, L-inf 4/255. --config.data.data_dir=DIR

Prepare the data, without TensorFlow, from the two archives that https://image-net.org gives with an account:
python -m jax_advtrain.data.prepare --name=imagenet2012 --data_dir=DIR --manual_dir=DOWNLOADS (144 GB more).
ResNet-50 in bfloat16, PGD-3 with step 2/3 of the radius, batch 512, SGD 0.1 divided by 10 every 30 of 90 epochs
(Salman et al. 2020, whose network reaches 64.02 clean and 34.96 under AutoAttack on RobustBench). Not measured by us:
no GPU, and not the data, were at hand; the pipeline's speed is in benchmarks/results/input.md.
"""

from jax_advtrain.config import base


def get_config():
    config = base("pgd_at", "resnet")
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"  # TFDS's test split has no labels
    config.data.validation_from, config.data.validation_size = "train", 5000
    config.data.num_test = 5000  # as many as RobustBench's; the order of a TFDS set is random
    config.data.image_size, config.data.resize = 224, 256
    config.data.augment = ("random_resized_crop", "flip")
    config.model.depth, config.model.stem, config.model.dtype = 50, "imagenet", "bfloat16"
    config.model.mean, config.model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.defense.norm = "linf"
    config.defense.epsilon = 4 / 255
    config.defense.num_steps = 3
    config.defense.alpha = 2.0
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "piecewise"
    config.optimizer.boundaries, config.optimizer.values = (30, 60), (0.01, 0.001)
    config.batch_size = 512
    config.epochs = 90
    config.monitor.every = 5
    config.eval.attacks = "pgd:num_steps=100:alpha=4.0, pgd:num_steps=100:alpha=4.0:loss=lm"
    config.eval.epsilons_linf, config.eval.epsilons_l2 = (1 / 255, 2 / 255, 4 / 255, 8 / 255), ()
    return config
