"""Two moons: IMA's boundary runs midway; beside it PGD with too large a radius.

No data or network needed; about a minute on 2 cores. The noiseless moons are 0.125 apart (L2, in the unit square), so
half the gap is 0.0625. Reached on the test set, clean accuracy: IMA with a ceiling of 0.075 (as in the paper, a little
more than half the gap) 100%, median margin 0.075; with a ceiling of 0.125, twice what there is, 99.8%; PGD-AT with that
radius 94%. The boundaries and margins: plots/boundary.png.
"""

from jax_advtrain.config import base


def get_config():
    config = base("ima", "mlp")
    config.data.name = "moons"
    config.data.noise = 0.03
    config.data.num_train = 500
    config.data.num_test = 500
    config.model.hidden = (64, 64)
    config.model.mean = 0.5
    config.model.std = 0.15
    config.defense.norm = "l2"
    config.defense.eps_max = 0.075
    config.defense.delta = 0.005
    config.epochs = 100
    config.batch_size = 64
    config.optimizer.learning_rate = 5e-3
    config.monitor.every = 20
    config.monitor.epsilon = 0.05
    config.checkpoint.every_epochs = 20
    config.eval.after_training = "last"
    config.eval.attacks = "pgd:alpha=4.0, pgd:alpha=4.0:loss=lm"
    config.eval.epsilons_linf = ()
    config.eval.epsilons_l2 = (0.02, 0.04, 0.06, 0.08, 0.1)
    config.margins.norm = "l2"
    config.margins.radii = (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2)
    config.beside = {
        "standard": {"name": "standard"},
        "pgd_at": {"name": "pgd_at", "norm": "l2", "epsilon": 0.125},
        "ima_too_high": {**config.defense.to_dict(), "eps_max": 0.125},
    }
    return config
