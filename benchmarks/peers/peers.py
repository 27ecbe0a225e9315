"""The originals by name: {package: attack} for each kind of `settings.py` (peers' environment).

An attack here is a function (images NCHW, labels) -> attacked images. What a package lacks is left out.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import foolbox
import numpy as np
import torch
import torchattacks
from art.attacks import evasion
from art.estimators.classification import PyTorchClassifier
from pyautoattack import autoattack as official
from settings import CW_CONST, CW_RATE, CW_SEARCH, FMN_STEP, Setting, step_size
from torch import nn

logging.disable(logging.WARNING)
Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
BIG = {"linf": "Linf", "l2": "L2", "l1": "L1"}
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


def attacks(setting: Setting, epsilon: float, network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Function]:
    """The packages that have this attack."""
    step = step_size(setting, epsilon)
    found: dict[str, Function] = {}
    for name, make in (("torchattacks", _torchattacks), ("foolbox", _foolbox), ("art", _art), ("official", _official)):
        function = make(setting, epsilon, step, network, image_shape)
        if isinstance(function, dict):
            found.update(function)
        elif function is not None:
            found[name] = function
    return found


def _torchattacks(setting: Setting, epsilon: float, step: float, network: nn.Module, image_shape):
    kind, norm, steps = setting.kind, setting.norm, setting.steps
    t, budget = torchattacks, {"norm": BIG.get(norm), "eps": epsilon, "steps": steps}
    if kind == "autoattack":
        # As shipped it runs APGD and FAB for 10 steps; "full" are the same parts with the 100 of the paper.
        shipped = t.AutoAttack(network, norm=BIG[norm], eps=epsilon, seed=0)
        queries = {"norm": BIG[norm], "eps": epsilon, "n_queries": 5000}
        parts = [
            t.APGD(network, **budget),
            t.APGDT(network, **budget),
            t.FAB(network, multi_targeted=True, **budget),
            t.Square(network, **queries),
        ]
        return {"torchattacks": shipped, "torchattacks full": t.MultiAttack(parts)}
    linf = {
        "fgsm": lambda: t.FGSM(network, eps=epsilon),
        "bim": lambda: t.BIM(network, eps=epsilon, alpha=step, steps=steps),
        "pgd": lambda: t.PGD(network, eps=epsilon, alpha=step, steps=steps),
        "mim": lambda: t.MIFGSM(network, eps=epsilon, alpha=step, steps=steps),
    }
    l2 = {
        "bim": lambda: t.PGDL2(network, eps=epsilon, alpha=step, steps=steps, random_start=False),
        "pgd": lambda: t.PGDL2(network, eps=epsilon, alpha=step, steps=steps),
        # It has no search over the constant: all its steps in one run.
        "cw": lambda: t.CW(network, c=1, steps=steps * CW_SEARCH, lr=CW_RATE),
        "deepfool": lambda: t.DeepFool(network, steps=steps),
    }
    both = {
        "apgd_ce": lambda: t.APGD(network, loss="ce", **budget),
        "apgd_dlr": lambda: t.APGD(network, loss="dlr", **budget),
        "apgd_t": lambda: t.APGDT(network, **budget),
        "fab_t": lambda: t.FAB(network, multi_targeted=True, **(budget | {"eps": 1e3})),
        "square": lambda: t.Square(network, norm=BIG[norm], eps=epsilon, n_queries=steps),
    }
    make = {"linf": both | linf, "l2": both | l2}.get(norm, {}).get(kind)
    return make() if make else None


def _foolbox(setting: Setting, epsilon: float, step: float, network: nn.Module, image_shape):
    f, steps = foolbox.attacks, setting.steps
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    search = {"abs_stepsize": step, "steps": steps}
    fixed = {
        ("fgsm", "linf"): lambda: f.LinfFastGradientAttack(),
        ("fgsm", "l2"): lambda: f.L2FastGradientAttack(),
        ("bim", "linf"): lambda: f.LinfBasicIterativeAttack(**search),
        ("bim", "l2"): lambda: f.L2BasicIterativeAttack(**search),
        ("pgd", "linf"): lambda: f.LinfPGD(**search),
        ("pgd", "l2"): lambda: f.L2PGD(**search),
        ("pgd", "l1"): lambda: f.L1PGD(**search),
        ("mim", "linf"): lambda: f.LinfMomentumIterativeFastGradientMethod(**search),
    }
    nearest = {
        ("cw", "l2"): lambda: f.L2CarliniWagnerAttack(
            binary_search_steps=CW_SEARCH, steps=steps, stepsize=CW_RATE, initial_const=CW_CONST, abort_early=False
        ),
        ("deepfool", "l2"): lambda: f.L2DeepFoolAttack(steps=steps, candidates=10),
        ("fmn", "linf"): lambda: f.LInfFMNAttack(steps=steps, max_stepsize=FMN_STEP["linf"]),
        ("fmn", "l2"): lambda: f.L2FMNAttack(steps=steps),
        ("fmn", "l1"): lambda: f.L1FMNAttack(steps=steps),
        ("fmn", "l0"): lambda: f.L0FMNAttack(steps=steps),
    }
    key = (setting.kind, setting.norm)
    if key in fixed:
        attack = fixed[key]()
        return lambda x, y: attack.run(model, x, foolbox.criteria.Misclassification(y), epsilon=epsilon)
    if key in nearest:
        attack = nearest[key]()
        return lambda x, y: attack.run(model, x, foolbox.criteria.Misclassification(y))
    return None


def _art(setting: Setting, epsilon: float, step: float, network: nn.Module, image_shape):
    kind, norm, steps, e = setting.kind, setting.norm, setting.steps, evasion
    if norm not in ORDER:
        return None
    classifier: Any = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), image_shape, 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    ball = {"norm": ORDER[norm], "eps": epsilon, "batch_size": 250}
    steps_too = ball | {"eps_step": step, "max_iter": steps, "verbose": False}
    quiet = {"batch_size": 250, "verbose": False}
    make = {
        "fgsm": lambda: e.FastGradientMethod(classifier, **ball),
        "bim": lambda: e.ProjectedGradientDescentPyTorch(classifier, **steps_too),
        "pgd": lambda: e.ProjectedGradientDescentPyTorch(classifier, num_random_init=1, **steps_too),
        "mim": lambda: e.MomentumIterativeMethod(classifier, **steps_too),
        "apgd_ce": lambda: _art_apgd(classifier, steps_too, epsilon, "cross_entropy"),
        "apgd_dlr": lambda: _art_apgd(classifier, steps_too, epsilon, "difference_logits_ratio"),
        "square": lambda: e.SquareAttack(classifier, norm=ORDER[norm], eps=epsilon, max_iter=steps, **quiet),
    }
    if norm == "l2":
        make["deepfool"] = lambda: e.DeepFool(classifier, max_iter=steps, epsilon=0.02, nb_grads=10, **quiet)
        make["cw"] = lambda: e.CarliniL2Method(
            classifier,
            learning_rate=CW_RATE,
            binary_search_steps=CW_SEARCH,
            max_iter=steps,
            initial_const=CW_CONST,
            **quiet,
        )
    if kind not in make or (norm == "l1" and kind not in ("pgd", "apgd_ce")):
        return None
    attack = make[kind]()
    return lambda x, y: torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def _art_apgd(classifier, steps_too, epsilon, loss):
    settings = steps_too | {"eps_step": 2 * epsilon}
    return evasion.AutoProjectedGradientDescent(classifier, nb_random_init=1, loss_type=loss, **settings)


def _official(setting: Setting, epsilon: float, step: float, network: nn.Module, image_shape):
    """The authors' own AutoAttack and its parts (packaged as pyautoattack), settings as in version "standard"."""
    kind, norm, steps = setting.kind, setting.norm, setting.steps
    if norm not in BIG or kind not in ("apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square", "autoattack"):
        return None
    whole = official.AutoAttack(network, eps=epsilon, norm=BIG[norm], seed=0)
    if kind == "autoattack":
        return lambda x, y: whole.run_standard_evaluation(x, y, batch_size=250)[0]
    if kind == "fab_t":
        whole.fab.targeted, whole.fab.n_iter, whole.fab.eps = True, steps, 1e3
        return whole.fab.perturb
    if kind == "square":
        # With as few queries as here its schedule must be rescaled, as the two others do.
        whole.square.n_queries, whole.square.rescale_schedule = steps, True
        return whole.square.perturb
    whole.apgd.n_iter = whole.apgd_targeted.n_iter = steps
    whole.apgd.n_restarts, whole.apgd.loss = 1, {"apgd_ce": "ce"}.get(kind, "dlr")
    whole.apgd.use_largereps = False
    return whole.apgd_targeted.perturb if kind == "apgd_t" else whole.apgd.perturb


def in_batches(attack: Function, images: torch.Tensor, labels: torch.Tensor, size: int = 250) -> torch.Tensor:
    pieces = [
        attack(images[at : at + size].clone(), labels[at : at + size].clone()) for at in range(0, len(images), size)
    ]
    return torch.cat([piece.detach().float() for piece in pieces])


seeded = partial(torch.manual_seed, 0)
