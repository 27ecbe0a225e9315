"""Two moons: the toy on which a decision boundary and the margins can be seen.

scikit-learn's two interleaving half circles have radius 1, centres (0, 0) and (1, 0.5), and together span [-1, 2] x
[-0.5, 1]. They are moved to the middle of the unit square and scaled by the same factor in both directions, 1/4, so
that L2 balls stay round; what noise pushes over the edge is clipped.
"""

from typing import Any

import numpy as np

from jax_advtrain.data.source import Records, Source, records_in_memory

SCALE = 0.25  # unit-square length of scikit-learn's unit length
CENTRE = (0.5, 0.25)  # the middle of the two noiseless moons
DEFAULT_COUNT = 1000


def open_moons(config: dict[str, Any]) -> Source:
    """Draws the points: float32 (N, 2) in [0,1], labels 0 (upper moon) and 1 (lower moon).

    `num_train` points for training and `num_test` for each of validation and test (default 1000), Gaussian noise of
    standard deviation `noise` in scikit-learn's units (a quarter of it in the unit square). The three are drawn from
    different streams of `seed`.
    """
    num_train = config["num_train"] or DEFAULT_COUNT
    num_test = config["num_test"] or DEFAULT_COUNT
    version = f"1.0.0-noise{config['noise']:g}-seed{config['seed']}"

    def draw(split: str, count: int, stream: int) -> Records:
        from sklearn.datasets import make_moons

        random = np.random.RandomState([config["seed"], stream])  # numpy freezes the legacy generator's streams
        points, labels = make_moons(count, noise=config["noise"], random_state=random)
        unit = np.clip((np.asarray(points) - CENTRE) * SCALE + 0.5, 0, 1)
        return records_in_memory(split, unit.astype(np.float32), np.asarray(labels))

    parts = (draw("train", num_train, 0), draw("validation", num_test, 1), draw("test", num_test, 2))
    return Source(config["name"], version, ("upper", "lower"), *parts)
