"""Bad input is one clear ValueError: what, and what would be right. Good input from a config builds what it says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_problems import SHAPE, keys, pixels, run, smooth_model

from jax_advtrain import attacks
from jax_advtrain.attacks.mim import mim

IMAGES, LABELS = pixels(4), jnp.array([0, 1, 2, 0])
PGD = attacks.pgd(epsilon=0.1, num_steps=1, start="clean")


def call(attack=PGD, key=None, images=IMAGES, labels=LABELS, logits_fn=None, **given):
    return attack.run(jax.random.key(0) if key is None else key, logits_fn or smooth_model(), images, labels, **given)


def one_logit(images):
    return jnp.sum(images, axis=(1, 2, 3))


BUILDING = {
    "norm": (lambda: attacks.pgd(norm="l0", epsilon=0.1), "norm is 'l0'; the norms are linf, l2, l1"),
    "share of another norm": (
        lambda: attacks.pgd(norm="l2", epsilon=0.1, l1_share=0.1),
        "l1_share belongs to the norm l1; leave it out with l2",
    ),
    "share of nothing": (
        lambda: attacks.pgd(norm="l1", epsilon=0.1, l1_share=0),
        "l1_share is 0; give a number above 0 and up to 1",
    ),
    "share of NaN": (lambda: attacks.pgd(norm="l1", epsilon=0.1, l1_share=float("nan")), "l1_share is nan; give"),
    "share in percent": (lambda: attacks.pgd(norm="l1", epsilon=0.1, l1_share=5), "l1_share is 5; give a number"),
    "decay": (lambda: mim(epsilon=0.1, decay=-1.0), "decay is -1.0; give finite numbers from 0"),
    "decay NaN": (lambda: mim(epsilon=0.1, decay=float("nan")), "decay is nan; give finite numbers from 0"),
    "momentum twice": (
        lambda: mim(epsilon=0.1, optimizer=optax.sgd(1.0)),
        "mim climbs along its own momentum; give an optimizer to pgd instead",
    ),
    "loss": (
        lambda: attacks.pgd(epsilon=0.1, loss="hinge"),
        "attack loss 'hinge' is not known; the losses are ce, lm, slm, dlr, bce, lmb",
    ),
    "start": (
        lambda: attacks.pgd(epsilon=0.1, start="zero"),
        "start is 'zero'; give one of random, clean, or images at the call",
    ),
    "placement": (
        lambda: attacks.on_boundary(PGD, placement="edge"),
        "placement is 'edge'; the placements are boundary, outside, inside, none",
    ),
    "negative epsilon": (lambda: attacks.pgd(epsilon=-0.1), "epsilon is -0.1; give finite numbers from 0"),
    "NaN epsilon": (lambda: attacks.pgd(epsilon=float("nan")), "epsilon is nan; give finite numbers from 0"),
    "infinite epsilon": (lambda: attacks.pgd(epsilon=float("inf")), "epsilon is inf; give finite"),
    "negative epsilon of numpy": (lambda: attacks.pgd(epsilon=np.float32(-1)), "epsilon is -1.0; give finite"),
    "negative epsilon in an array": (
        lambda: attacks.pgd(epsilon=np.array([0.1, -0.2])),
        "epsilon ranges over [-0.2, 0.1]; give finite numbers from 0",
    ),
    "epsilon in words": (lambda: attacks.pgd(epsilon="8/255"), "epsilon is '8/255'; give finite numbers from 0"),
    "no epsilon": (lambda: attacks.noise(epsilon=None), "epsilon is None; give finite numbers from 0"),
    "step size": (lambda: attacks.pgd(epsilon=0.1, step_size=-1), "step_size is -1; give finite numbers from 0"),
    "alpha": (lambda: attacks.pgd(epsilon=0.1, alpha=float("nan")), "alpha is nan; give finite numbers from 0"),
    "alpha beside step size": (
        lambda: attacks.pgd(epsilon=0.1, alpha=2, step_size=0.1),
        "alpha makes the step relative to epsilon; leave it out beside step_size or an optimizer",
    ),
    "alpha beside an optimizer": (
        lambda: attacks.pgd(epsilon=0.1, alpha=2, optimizer=optax.sgd(1.0)),
        "leave it out beside step_size or an optimizer",
    ),
    "no steps": (lambda: attacks.pgd(epsilon=0.1, num_steps=0), "num_steps is 0; give a whole number from 1"),
    "half a step": (lambda: attacks.ifgsm(epsilon=0.1, num_steps=2.5), "num_steps is 2.5; give a whole number from 1"),
    "refine steps": (
        lambda: attacks.on_boundary(PGD, refine_steps=-1),
        "refine_steps is -1; give a whole number from 0",
    ),
    "compact unhit": (
        lambda: attacks.on_boundary(PGD, compact=True, refine_unhit=True),
        "compact refines hit samples only; it excludes refine_unhit",
    ),
    "temperature zero": (
        lambda: attacks.with_temperature("ce", 0),
        "temperature is 0; give finite numbers above 0",
    ),
    "temperature below zero": (lambda: attacks.with_temperature("ce", -1.0), "temperature is -1.0; give finite"),
    "temperature NaN": (lambda: attacks.with_temperature("ce", float("nan")), "temperature is nan; give finite"),
    "temperature zero for a class": (
        lambda: attacks.with_temperature("ce", [1.0, 0.0], per_class=True),
        "temperature ranges over [0, 1]; give finite numbers above 0",
    ),
    "temperature twice": (
        lambda: attacks.with_temperature(attacks.with_temperature("ce", 2.0), 2.0),
        "the loss has a temperature already",
    ),
    "restarts": (lambda: attacks.restarts(PGD, 0), "num_restarts is 0; give a whole number from 1"),
    "worst of nothing": (attacks.worst_of, "worst_of needs at least one attack"),
    "distribution": (
        lambda: attacks.noise(epsilon=0.1, distribution="poisson"),
        "distribution is 'poisson'; the distributions are uniform, gaussian",
    ),
    "registry name": (
        lambda: attacks.from_config({"name": "pdg", "epsilon": 0.1}),
        "attack 'pdg' is not known (did you mean 'pgd'?); valid: pgd, fgsm, ifgsm, mim, apgd",
    ),
    "no registry name": (lambda: attacks.from_config({"epsilon": 0.1}), "attack None is not known; valid: pgd"),
    "registry field": (
        lambda: attacks.from_config({"name": "pgd", "epsilom": 0.1}),
        "attack 'pgd': field 'epsilom' is not known (did you mean 'epsilon'?); valid: norm, epsilon, num_steps",
    ),
    "registry field of another attack": (
        lambda: attacks.from_config({"name": "fgsm", "epsilon": 0.1, "num_steps": 3}),
        "attack 'fgsm': field 'num_steps' is not known",
    ),
    "registry function": (
        lambda: attacks.from_config({"name": "pgd", "epsilon": 0.1, "optimizer": "adam"}),
        "attack 'pgd': field 'optimizer' is not known",
    ),
    "registry without epsilon": (
        lambda: attacks.from_config({"name": "fgsm", "norm": "l2"}),
        "attack 'fgsm' needs the field 'epsilon'",
    ),
    "registry epsilon": (lambda: attacks.from_config({"name": "ifgsm", "epsilon": -1}), "epsilon is -1; give finite"),
    "registry steps": (
        lambda: attacks.from_config({"name": "ifgsm", "epsilon": 0.1, "num_steps": "10"}),
        "num_steps is '10'; give a whole number from 1",
    ),
    "registry temperature": (
        lambda: attacks.from_config({"name": "pgd", "epsilon": 0.1, "temperature": 0.0}),
        "temperature is 0.0; give finite numbers above 0",
    ),
    "registry temperature of noise": (
        lambda: attacks.from_config({"name": "noise", "epsilon": 0.1, "temperature": 2.0}),
        "attack 'noise' ascends no loss, so it takes no temperature",
    ),
    "registry restarts": (
        lambda: attacks.from_config({"name": "pgd", "epsilon": 0.1, "restarts": 0}),
        "num_restarts is 0; give a whole number from 1",
    ),
}

CALLING = {
    "negative epsilon": (lambda: call(epsilon=-0.1), "epsilon is -0.1; give finite numbers from 0"),
    "NaN epsilon": (lambda: call(epsilon=np.full(4, np.nan)), "epsilon ranges over [nan, nan]; give finite"),
    "shape of epsilon": (
        lambda: call(epsilon=jnp.ones(3)),
        "epsilon has shape (3,); give a scalar or one a sample: (4,)",
    ),
    "shape of step size": (
        lambda: call(attacks.pgd(epsilon=0.1, step_size=jnp.ones(3))),
        "step_size has shape (3,); give a scalar or one a sample: (4,)",
    ),
    "shape of alpha": (
        lambda: call(attacks.pgd(epsilon=0.1, alpha=jnp.ones((4, 1)))),
        "alpha has shape (4, 1); give a scalar or one a sample: (4,)",
    ),
    "shape of decay": (
        lambda: call(mim(epsilon=0.1, decay=jnp.ones(3))),
        "decay has shape (3,); give a scalar or one a sample: (4,)",
    ),
    "shape of temperature": (
        lambda: call(attacks.pgd(epsilon=0.1, loss=attacks.with_temperature("ce", jnp.ones(3)))),
        "temperature has shape (3,); give a scalar or one a sample: (4,)",
    ),
    "shape of temperature a class": (
        lambda: call(attacks.pgd(epsilon=0.1, loss=attacks.with_temperature("ce", jnp.ones(4), per_class=True))),
        "temperature has shape (4,); give one a class: (3,)",
    ),
    "integer images": (
        lambda: call(images=jnp.zeros((4, *SHAPE), jnp.uint8)),
        "images are uint8 of shape (4, 3, 2, 1); give floating point in [0, 1] with a batch axis",
    ),
    "half precision": (
        lambda: call(images=IMAGES.astype(np.float16)),
        "images are float16, whose smallest numbers small gradients pass; give float32 or bfloat16",
    ),
    "images without a batch": (lambda: call(images=jnp.zeros(4)), "images are float32 of shape (4,); give floating"),
    "float labels": (
        lambda: call(labels=jnp.zeros(4)),
        "labels are float32 of shape (4,); give integers, one a sample of 4",
    ),
    "too few labels": (lambda: call(labels=LABELS[:3]), "labels are int32 of shape (3,); give integers, one a sample"),
    "labels in a list": (lambda: call(labels=[0, 1, 2, 0]), "labels are a list; give an array"),
    "labels of one column": (lambda: call(labels=LABELS[:, None]), "labels of shape (4, 1)"),
    "float targets": (lambda: call(targets=jnp.zeros(4)), "targets are float32 of shape (4,); give integers"),
    "targets unlike labels": (
        lambda: call(targets=LABELS[:, None]),
        "targets have shape (4, 1); give the shape of the labels: (4,)",
    ),
    "start": (
        lambda: call(start=IMAGES[:2]),
        "start is float32 of shape (2, 3, 2, 1); give images of shape (4, 3, 2, 1)",
    ),
    "integer start": (lambda: call(start=jnp.zeros_like(IMAGES, jnp.uint8)), "start is uint8 of shape (4, 3, 2, 1)"),
    "keys": (lambda: call(key=keys(3)), "key has shape (3,); give one key or one a sample: (4,)"),
    "seed": (lambda: call(key=0), "key is 0; give jax.random.key(seed), or one key a sample"),
    "one logit and ce": (
        lambda: call(logits_fn=one_logit),
        "outputs of shape (4,) for labels of shape (4,): this loss needs one logit a class on the last axis",
    ),
    "many logits and bce": (
        lambda: call(attacks.pgd(epsilon=0.1, loss="bce")),
        "outputs of shape (4, 3) for labels of shape (4,): this loss needs one logit a label",
    ),
    "one logit in a column": (
        lambda: call(attacks.pgd(epsilon=0.1), logits_fn=lambda images: one_logit(images)[:, None]),
        "outputs of shape (4, 1) hold one class; squeeze one-logit outputs to (batch,)",
    ),
    "loss averaged over the batch": (
        lambda: call(attacks.pgd(epsilon=0.1, loss=lambda z, y: jnp.mean(attacks.cross_entropy(z, y)))),
        "the loss gave shape (); it must give one value a sample: (4,)",
    ),
    "is_right a pixel": (
        lambda: call(attacks.pgd(epsilon=0.1, is_right=lambda z, y: z > 0)),
        "is_right gave shape (4, 3); it must give one value a sample: (4,)",
    ),
    "score a pixel": (
        lambda: call(attacks.pgd(epsilon=0.1, num_steps=1, score=lambda z, y: z)),
        "score gave shape (4, 3); it must give one value a sample: (4,)",
    ),
    "noise": (lambda: call(attacks.noise(epsilon=0.1), images=jnp.zeros((4, 2), int)), "images are int32"),
    "inside jit": (
        lambda: run(PGD, keys(4), smooth_model(), IMAGES, LABELS, epsilon=jnp.ones(5)),
        "epsilon has shape (5,); give a scalar or one a sample: (4,)",
    ),
}

VALUES = {
    "range": (
        lambda: attacks.validate(255 * np.ones((2, 3)), [0, 1]),
        "images range over [255, 255]; they must lie in",
    ),
    "below": (lambda: attacks.validate(np.array([[-0.5, 0.25]]), [0]), "images range over [-0.5, 0.25]"),
    "NaN": (lambda: attacks.validate(np.array([[np.nan, 0.25]]), [0]), "images range over [nan, nan]"),
    "NaN in bfloat16": (
        lambda: attacks.validate(jnp.array([[jnp.nan, 0.25]], jnp.bfloat16), [0]),
        "images range over [nan, nan]",
    ),
    "integers": (lambda: attacks.validate(np.zeros((2, 3), np.uint8), [0, 1]), "images are uint8; give floating point"),
    "labels above": (
        lambda: attacks.validate(np.zeros((2, 3)), np.array([0, 10]), num_classes=10),
        "labels range over [0, 10]; there are 10 classes from 0",
    ),
    "labels below": (
        lambda: attacks.validate(np.zeros((2, 3)), np.array([-1, 1])),
        "labels range over [-1, 1]; classes are counted from 0",
    ),
    "float labels": (lambda: attacks.validate(np.zeros((2, 3)), np.zeros(2)), "labels are float64; give integers"),
    "labels too few": (
        lambda: attacks.validate(np.zeros((2, 3)), np.zeros(3, int)),
        "labels have shape (3,) for images of shape (2, 3); give one a sample",
    ),
}


@pytest.mark.parametrize(
    "case", [(kind, name) for kind in ("BUILDING", "CALLING", "VALUES") for name in globals()[kind]], ids=" ".join
)
def test_bad_input_is_one_clear_line(case):
    kind, name = case
    act, wanted = globals()[kind][name]
    with pytest.raises(ValueError, match=re.escape(wanted)) as raised:
        act()
    assert "\n" not in str(raised.value)


def test_validate_lets_good_values_pass():
    attacks.validate(np.array([[0.0, 1.0]]), np.array([9]), num_classes=10)
    attacks.validate(jnp.array([[0.0, 1.0]], jnp.bfloat16), np.array([9]))
    attacks.validate(np.zeros((0, 3)), np.zeros(0, int), num_classes=10)


def test_a_config_builds_what_the_functions_build():
    pairs = [
        (
            {"name": "pgd", "norm": "l2", "epsilon": 0.5, "num_steps": 3, "loss": "lm", "start": "clean"},
            attacks.pgd(norm="l2", epsilon=0.5, num_steps=3, loss="lm", start="clean"),
        ),
        ({"name": "fgsm", "epsilon": 0.1}, attacks.fgsm(epsilon=0.1)),
        (
            {"name": "ifgsm", "epsilon": 0.1, "num_steps": 3, "temperature": 0.2},
            attacks.ifgsm(epsilon=0.1, num_steps=3, loss=attacks.with_temperature("ce", 0.2)),
        ),
        (
            {"name": "pgd", "epsilon": 0.1, "step_size": 0.02, "num_steps": 3, "restarts": 2},
            attacks.restarts(attacks.pgd(epsilon=0.1, step_size=0.02, num_steps=3), 2),
        ),
        (
            {"name": "noise", "norm": "l2", "epsilon": 0.2, "distribution": "gaussian"},
            attacks.noise(norm="l2", epsilon=0.2, distribution="gaussian"),
        ),
    ]
    for spec, attack in pairs:
        built = attacks.from_config(spec)
        assert jax.tree.structure(built) == jax.tree.structure(attack)
        assert jax.tree.leaves(built) == jax.tree.leaves(attack)
        assert repr(built) == repr(attack)


def test_a_config_takes_the_tasks_own_functions():
    def never_right(outputs, labels):
        return jnp.zeros(labels.shape, bool)

    attack = attacks.from_config(
        {"name": "pgd", "epsilon": 0.0, "num_steps": 1, "start": "clean"}, is_right=never_right
    )
    found = run(attack, keys(4), smooth_model(), IMAGES, LABELS)
    assert not np.any(found.is_right) and np.all(found.hits == 2)
