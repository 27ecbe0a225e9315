"""Every composition of every attack: which work in jit, vmap and shard_map, and what those that don't say.

A dot works; a letter is refused with one line, see REFUSALS. Run as a script (by test_compositions) with 8 forced
devices it compares the results under jit, vmap over models and shard_map; arguments name the pairs, without them all
are run.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from toy_problems import keys, pixels, smooth_model

from jax_advtrain import attacks
from jax_advtrain.attacks.apgd import apgd
from jax_advtrain.attacks.at_radius import at_radius
from jax_advtrain.attacks.autoattack import autoattack
from jax_advtrain.attacks.compose import restarts, worst_of
from jax_advtrain.attacks.eot import eot
from jax_advtrain.attacks.fab import fab
from jax_advtrain.attacks.rounded import rounded
from jax_advtrain.attacks.square import square
from jax_advtrain.attacks.targeting import targeted_at
from jax_advtrain.attacks.temperature import temperature_sweep
from jax_advtrain.attacks.until_success import until_success

BATCH, CLASSES, EPSILON = 16, 4, 0.3
ADAM = optax.adam(0.1)

TABLE = """
              restarts worst_of until_success targeted_at eot at_radius rounded temperature_sweep
pgd           .        .        .             .           .   r         .       .
adam          .        .        .             .           .   r         .       .
apgd          .        .        .             .           .   r         .       .
square        .        .        .             .           e   r         .       l
fab           .        .        .             .           e   .         .       l
noise         .        .        s             s           e   s         s       l
restarts      .        .        .             .           .   r         .       .
worst_of      .        .        .             .           .   r         .       .
until_success .        .        .             .           .   r         .       .
targeted_at   .        .        .             t           .   r         .       .
at_radius     .        .        .             .           e   r         .       l
rounded       .        .        .             .           .   r         .       .
temperature   .        .        .             .           .   r         .       w
autoattack    .        .        .             a           a   a         a       a
on_boundary   b        b        b             b           b   b         b       b
"""

REFUSALS = {
    "a": "autoattack is made for the model's number of classes",
    "b": "cannot hold on_boundary",
    "e": "eot needs attacks that average gradients",
    "l": "temperature_sweep needs attacks with a loss",
    "r": "at_radius needs minimum-norm attacks without a radius",
    "s": "needs an attack that goes step by step",
    "t": "targeted_at chooses the targets itself",
    "w": "the loss has a temperature already",
}


def inner_attacks():
    pgd = attacks.pgd(epsilon=EPSILON, num_steps=2)
    return {
        "pgd": pgd,
        "adam": attacks.pgd(epsilon=EPSILON, num_steps=2, optimizer=ADAM),
        "apgd": apgd(epsilon=EPSILON, num_steps=2),
        "square": square(epsilon=EPSILON, num_steps=2),
        "fab": fab(num_steps=2),
        "noise": attacks.noise(epsilon=EPSILON),
        "restarts": restarts(pgd, 2),
        "worst_of": worst_of(pgd, attacks.pgd(epsilon=EPSILON, num_steps=2, loss="lm", start="clean")),
        "until_success": until_success(pgd),
        "targeted_at": targeted_at(pgd, 2),
        "at_radius": at_radius(fab(num_steps=2), EPSILON),
        "rounded": rounded(pgd),
        "temperature": temperature_sweep(pgd, [1.0, 0.1]),
        "autoattack": autoattack(epsilon=EPSILON, num_steps=2, num_queries=2),
        "on_boundary": attacks.on_boundary(pgd),
    }


OUTER = {
    "restarts": lambda attack: restarts(attack, 2),
    "worst_of": lambda attack: worst_of(attacks.pgd(epsilon=EPSILON, num_steps=2), attack),
    "until_success": until_success,
    "targeted_at": lambda attack: targeted_at(attack, 2),
    "eot": lambda attack: eot(attack, 2),
    "at_radius": lambda attack: at_radius(attack, EPSILON),
    "rounded": rounded,
    "temperature_sweep": lambda attack: temperature_sweep(attack, [0.5, 2.0]),
}


def pairs():
    """(outer, inner, mark) for each place of the table."""
    header, *rows = TABLE.strip().splitlines()
    for row in rows:
        inner, *marks = row.split()
        for outer, mark in zip(header.split(), marks, strict=True):
            yield outer, inner, mark


def problem():
    images, labels = pixels(BATCH), np.arange(BATCH) % CLASSES
    return smooth_model(scale=0.5, classes=CLASSES), keys(BATCH), images, labels


def attacked(attack, logits_fn, key, images, labels):
    return attack.run(key, logits_fn, images, labels)


def over_models(attack, models, key, images, labels):
    return jax.vmap(lambda model: attacked(attack, model, key, images, labels))(models)


def two_models():
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(smooth_model(s, CLASSES, 0.5) for s in (0, 1)))


def spread(function, mesh, out_specs):
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    return functools.partial(jax.shard_map, check_vma=True)(
        function, mesh=mesh, in_specs=(everywhere, everywhere, rows, rows, rows), out_specs=out_specs
    )


def main(wanted):
    devices = jax.devices()
    assert len(devices) == 8, devices
    mesh = Mesh(np.array(devices), ("data",))
    logits_fn, key, images, labels = problem()
    for outer, inner, mark in pairs():
        if mark != "." or (wanted and f"{outer}({inner})" not in wanted):
            continue
        attack = OUTER[outer](inner_attacks()[inner])
        alone = jax.jit(attacked)(attack, logits_fn, key, images, labels)
        many = jax.jit(spread(attacked, mesh, PartitionSpec("data")))(attack, logits_fn, key, images, labels)
        models = jax.jit(over_models)(attack, two_models(), key, images, labels)
        for one, other, both in zip(alone, many, models, strict=True):
            assert len(other.sharding.device_set) == 8
            np.testing.assert_allclose(one, other, atol=1e-5, err_msg=f"{outer}({inner}) under shard_map")
            np.testing.assert_allclose(one, both[0], atol=1e-5, err_msg=f"{outer}({inner}) under vmap")
        print(f"equal: {outer}({inner})", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
