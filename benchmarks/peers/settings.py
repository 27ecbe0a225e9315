"""What is compared: the trained networks (cases) and the attacks with their settings. Both environments import this.

Steps, radii and step sizes are in pixel units of [0, 1], and the same for everybody.
"""

from typing import NamedTuple


class Case(NamedTuple):
    """A network to train and attack.

    Attributes:
      architecture: "small_cnn" or "resnet".
      data: name of the TFDS set.
      train_epsilon: radius of PGD training, None for standard training.
      linf, l2, l1: radii of the fixed-radius attacks.
      samples: test images that it is attacked on.
      epochs, num_train: of the training.
    """

    architecture: str
    data: str
    train_epsilon: float | None
    linf: float
    l2: float
    l1: float
    samples: int
    epochs: int
    num_train: int


CASES = {
    "small_cnn-mnist-standard": Case("small_cnn", "mnist", None, 0.1, 1.0, 5.0, 1000, 3, 20000),
    "small_cnn-mnist-pgd_at": Case("small_cnn", "mnist", 0.3, 0.3, 1.0, 5.0, 1000, 6, 20000),
    "small_cnn-cifar10-standard": Case("small_cnn", "cifar10", None, 2 / 255, 0.25, 4.0, 1000, 8, 20000),
    "small_cnn-cifar10-pgd_at": Case("small_cnn", "cifar10", 8 / 255, 8 / 255, 0.5, 8.0, 1000, 8, 20000),
    "resnet-mnist-standard": Case("resnet", "mnist", None, 0.1, 1.0, 5.0, 100, 3, 20000),
    "resnet-mnist-pgd_at": Case("resnet", "mnist", 0.3, 0.3, 1.0, 5.0, 100, 8, 20000),
    "resnet-cifar10-standard": Case("resnet", "cifar10", None, 2 / 255, 0.25, 4.0, 100, 8, 20000),
    "resnet-cifar10-pgd_at": Case("resnet", "cifar10", 8 / 255, 8 / 255, 0.5, 8.0, 100, 6, 10000),
}


class Setting(NamedTuple):
    """One attack.

    Attributes:
      kind: what it is called in `peers.py` and `ours.py`.
      norm: "linf", "l2", "l1" or "l0".
      steps: updates (queries for square; per binary search for cw).
      minimum: whether it looks for the nearest adversarial image; then distances are compared too.
      cost: rough passes a sample, by which long ones get fewer samples (`--passes`).
    """

    kind: str
    norm: str
    steps: int
    minimum: bool
    cost: int


def _fixed(kind, norm, steps, factor=2.0):
    return Setting(kind, norm, steps, False, int(factor * steps))


def _nearest(kind, norm, steps, factor=2.0):
    return Setting(kind, norm, steps, True, int(factor * steps))


SETTINGS = {
    "fgsm-linf": _fixed("fgsm", "linf", 1),
    "fgsm-l2": _fixed("fgsm", "l2", 1),
    "bim10-linf": _fixed("bim", "linf", 10),
    "bim10-l2": _fixed("bim", "l2", 10),
    "pgd20-linf": _fixed("pgd", "linf", 20),
    "pgd20-l2": _fixed("pgd", "l2", 20),
    "pgd20-l1": _fixed("pgd", "l1", 20),
    "mim10-linf": _fixed("mim", "linf", 10),
    "apgd_ce100-linf": _fixed("apgd_ce", "linf", 100),
    "apgd_ce100-l2": _fixed("apgd_ce", "l2", 100),
    "apgd_ce100-l1": _fixed("apgd_ce", "l1", 100),
    "apgd_dlr100-linf": _fixed("apgd_dlr", "linf", 100),
    "apgd_dlr100-l2": _fixed("apgd_dlr", "l2", 100),
    "deepfool-l2": _nearest("deepfool", "l2", 50, 5),
    "cw-l2": _nearest("cw", "l2", 100, 2 * 5),
    "fmn100-linf": _nearest("fmn", "linf", 100),
    "fmn100-l2": _nearest("fmn", "l2", 100),
    "fmn100-l1": _nearest("fmn", "l1", 100),
    "fmn100-l0": _nearest("fmn", "l0", 100),
    "apgd_t100-linf": _fixed("apgd_t", "linf", 100, 2 * 9),
    "apgd_t100-l2": _fixed("apgd_t", "l2", 100, 2 * 9),
    "fab_t100-linf": _nearest("fab_t", "linf", 100, 3 * 9),
    "fab_t100-l2": _nearest("fab_t", "l2", 100, 3 * 9),
    "square1000-linf": _fixed("square", "linf", 1000, 1),
    "square1000-l2": _fixed("square", "l2", 1000, 1),
    "fab_t100-l1": _nearest("fab_t", "l1", 100, 3 * 9),
    "square1000-l1": _fixed("square", "l1", 1000, 1),
    "autoattack-linf": _fixed("autoattack", "linf", 100, 2 + 18 + 27 + 50),
    "autoattack-l2": _fixed("autoattack", "l2", 100, 2 + 18 + 27 + 50),
    "autoattack-l1": _fixed("autoattack", "l1", 100, 10 + 10 + 27 + 50),
}
CW_SEARCH, CW_RATE, CW_CONST = 5, 0.05, 1e-1
FMN_STEP = {"linf": 10.0}  # 1 in the other norms


def step_size(setting: Setting, epsilon: float) -> float:
    """A quarter of the radius in 10 steps, 2.5 radii in all in 20; the whole radius for one step."""
    return {"fgsm": epsilon, "bim": epsilon / 4, "mim": epsilon / 4}.get(setting.kind, 2.5 * epsilon / setting.steps)


def epsilon_of(case: Case, setting: Setting) -> float:
    """The radius at which a case is attacked; minimum-norm attacks in "l0" have none and give a dummy."""
    return getattr(case, setting.norm, 25.0)


def samples_of(case: Case, setting: Setting, budget: int) -> int:
    """How many images: all, or fewer where the attack takes more than `budget` passes in all."""
    return max(min(case.samples, budget // setting.cost), 25)
