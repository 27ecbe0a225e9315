"""All defenses on MNIST, L-inf 0.3, the first 10,000 training images: --config.base.data.data_dir=DIR.

Standard, PGD-AT, TRADES, MART and IMA with 3 seeds, the others with 1. Defenses as in the configs/mnist_*.py; the
network is a quarter of small_cnn (105,866 parameters), as in compare_mnist_worst_class.py, whose runs of the same
workdir are found.

Measured: benchmarks/results/compare_mnist.md, about 2 hours of one core in all.
"""

from jax_advtrain.config import base
from jax_advtrain.studies.grid import grid

SEEDS = (0, 1, 2)


def get_config():
    config = base("standard", "small_cnn")
    config.data.name = "mnist"
    config.data.num_train = 10_000
    config.data.validation_size = 5000
    config.model.channels = (16, 32)
    config.model.hidden = (64,)
    config.epochs = 20
    config.monitor.epsilon = 0.3
    config.monitor.num_samples = 1000
    config.eval.num_samples = 2000
    config.eval.epsilons_l2 = ()
    config.eval.attacks = (
        "fgsm, ifgsm:num_steps=10, pgd:num_steps=10:alpha=4.0, pgd:num_steps=10:alpha=4.0:loss=lm,"
        " pgd:num_steps=100:alpha=4.0, pgd:num_steps=100:alpha=4.0:loss=lm"
    )
    compared = grid(
        config,
        {
            "standard": {"monitor": {"every": 5}, "seeds": SEEDS},
            "pgd_at": {"config": "mnist_pgd_at.py", "seeds": SEEDS},
            "trades": {"config": "mnist_trades.py", "seeds": SEEDS},
            "mart": {"config": "mnist_mart.py", "seeds": SEEDS},
            "ima": {"config": "mnist_ima.py", "seeds": SEEDS},
            **{name: {"config": f"mnist_{name}.py"} for name in ("fat", "gairat", "fast_at", "n_fgsm", "iaat", "mma")},
            "ame": {"config": "mnist_ame.py"},
            "awp": {"config": "mnist_awp.py"},
        },
    )
    compared.reference = "ima"
    compared.autoattack.epsilons_linf = (0.2,)
    compared.autoattack.num_samples = 500
    return compared
