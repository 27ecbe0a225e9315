"""Standard, PGD-AT, TRADES and IMA on 8x8 digits: the whole of a comparison, no download; not timed by us."""

from jax_advtrain.config import base
from jax_advtrain.studies.grid import grid


def get_config():
    config = base("standard", "mlp")
    config.data.name = "digits"
    config.model.hidden = (64,)
    config.epochs = 20
    config.batch_size = 64
    config.optimizer.learning_rate = 2e-3
    config.monitor.num_samples = 180
    config.monitor.epsilon = 0.1
    config.monitor.every = 5
    config.eval.attacks = (
        "fgsm, ifgsm:num_steps=10, pgd:num_steps=10:alpha=4.0, pgd:num_steps=10:alpha=4.0:loss=lm,"
        " pgd:num_steps=100:alpha=4.0"
    )
    config.eval.epsilons_linf = (0.05, 0.1, 0.15, 0.2)
    config.eval.epsilons_l2 = ()
    config.eval.figures = 0
    compared = grid(
        config,
        {
            "standard": {},
            "pgd_at": {"defense": {"epsilon": 0.1}},
            "trades": {"defense": {"epsilon": 0.1}},
            "ima": {"defense": {"eps_max": 0.2, "delta": 0.01}, "seeds": (0, 1, 2)},
        },
    )
    compared.reference = "ima"
    compared.autoattack.epsilons_linf = (0.1,)
    compared.autoattack.num_samples = 100
    return compared
