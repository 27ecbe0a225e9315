"""Our attacks by the kinds of `settings.py`: functions (key, logits_fn, images, labels) -> attacked images.

An attack that is not there yet is None.
"""

from collections.abc import Callable
from importlib import import_module

import jax
import jax.numpy as jnp
from settings import CW_CONST, CW_RATE, CW_SEARCH, FMN_STEP, Setting, step_size

from jax_advtrain import attacks
from jax_advtrain.attacks import norms

NUM_TARGETS = 9


def factory(module: str, name: str):
    """A factory from its own module, so that what is not exported yet can be compared too."""
    try:
        return getattr(import_module(f"jax_advtrain.attacks.{module}"), name)
    except (ImportError, AttributeError):
        return None


def attack(setting: Setting, epsilon: float) -> Callable | None:
    kind, norm, steps = setting.kind, setting.norm, setting.steps
    if kind == "fab_t":
        fab = factory("fab", "fab")
        return nearest_of_targets(fab(norm=norm, num_steps=steps), norm) if fab else None
    made = _attack(kind, norm, steps, epsilon, step_size(setting, epsilon))
    if made is None:
        return None
    # The attack is an argument of the compiled function: another radius compiles nothing.
    return lambda *args: _run(made, *args)


def _attack(kind: str, norm: str, steps: int, epsilon: float, step: float):
    if kind in ("fgsm", "bim", "pgd"):
        start = "random" if kind == "pgd" else "clean"
        return attacks.pgd(norm=norm, epsilon=epsilon, num_steps=steps, step_size=step, start=start)
    if kind == "mim" and (mim := factory("mim", "mim")):
        return mim(norm=norm, epsilon=epsilon, num_steps=steps, step_size=step)
    if kind in ("apgd_ce", "apgd_dlr") and (apgd := factory("apgd", "apgd")):
        return apgd(norm=norm, epsilon=epsilon, num_steps=steps, loss=kind[5:])
    if kind == "apgd_t" and (apgd := factory("apgd", "apgd")) and (targeted_at := factory("targeting", "targeted_at")):
        return targeted_at(apgd(norm=norm, epsilon=epsilon, num_steps=steps, loss="dlr"), NUM_TARGETS)
    if kind == "square" and (square := factory("square", "square")):
        return square(norm=norm, epsilon=epsilon, num_steps=steps)
    if kind == "fmn" and (fmn := factory("fmn", "fmn")):
        return fmn(norm=norm, num_steps=steps, step_size=FMN_STEP.get(norm, 1.0))
    if kind == "deepfool" and (deepfool := factory("deepfool", "deepfool")):
        return deepfool(norm=norm, num_steps=steps)
    if kind == "cw" and (carlini_wagner := factory("carlini_wagner", "carlini_wagner")):
        return carlini_wagner(
            inner_steps=steps, binary_search_steps=CW_SEARCH, step_size=CW_RATE, initial_constant=CW_CONST
        )
    if kind == "autoattack" and (autoattack := factory("autoattack", "autoattack")):
        return autoattack(norm=norm, epsilon=epsilon, version="standard")
    return None


@jax.jit
def _run(attack, key, logits_fn, images, labels):
    return attack(key, logits_fn, images, labels)


def nearest_of_targets(attack, norm: str) -> Callable:
    """A minimum-norm attack at each of the likeliest wrong classes; per sample the nearest image that fools."""
    targeted = jax.jit(lambda key, logits_fn, x, y, targets: attack(key, logits_fn, x, y, targets=targets))

    def run(key, logits_fn, images, labels):
        logits = logits_fn(images)
        ranked = jnp.argsort(-jnp.where(jax.nn.one_hot(labels, logits.shape[-1], dtype=bool), -jnp.inf, logits))
        best, away = images, jnp.full(len(images), jnp.inf)
        for rank in range(NUM_TARGETS):
            found = targeted(key, logits_fn, images, labels, ranked[:, rank].astype(labels.dtype))
            wrong = ~attacks.is_right(logits_fn(found), labels)
            distance = jnp.where(wrong, norms.length(found - images, norm), jnp.inf)
            best = jnp.where((distance < away)[:, None, None, None], found, best)
            away = jnp.minimum(away, distance)
        return best

    return run
