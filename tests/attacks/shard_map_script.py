"""Run by test_attack_transforms in a process with 8 forced devices: attacks under shard_map equal those without."""

import functools

import jax
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from toy_problems import keys, pixels, smooth_model

from jax_advtrain import attacks

BATCH = 16


def cases():
    random = attacks.pgd(norm="l2", epsilon=0.3, num_steps=3)
    clean = attacks.pgd(norm="linf", epsilon=0.3, num_steps=3, start="clean")
    adam = attacks.pgd(norm="l2", epsilon=0.3, num_steps=3, start="clean", optimizer=optax.adam(0.1))
    momentum = attacks.pgd(epsilon=0.3, num_steps=3, start="clean", optimizer=optax.sgd(0.1, momentum=0.9))
    cold = attacks.with_temperature("slm", np.array([0.2, 1.0, 5.0], np.float32), per_class=True)
    tempered = attacks.pgd(epsilon=0.1, step_size=0.05, num_steps=2, start="clean", loss=cold)
    noise = attacks.noise(norm="l2", epsilon=0.2, distribution="gaussian")
    yield "random start", random, {}
    yield "adam", adam, {}
    yield "momentum", momentum, {}
    yield "composed", attacks.restarts(attacks.worst_of(noise, clean, tempered), 2), {}
    yield "targeted boundary", attacks.on_boundary(clean, compact=True), {"targets": (np.arange(BATCH) + 1) % 3}
    yield "boundary", attacks.on_boundary(clean, placement="outside", inside_is_clean=True), {}
    yield "given start", attacks.on_boundary(clean), {"start": pixels(BATCH, seed=5)}


def main():
    devices = jax.devices()
    assert len(devices) == 8, devices
    mesh = Mesh(np.array(devices), ("data",))
    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    images, labels, key = pixels(BATCH), np.arange(BATCH) % 3, keys(BATCH)
    epsilon = np.linspace(0, 0.4, BATCH, dtype=np.float32)
    for name, attack, given in cases():

        def attacked(attack, logits_fn, key, images, labels, epsilon, given):
            return attack.run(key, logits_fn, images, labels, epsilon=epsilon, **given)

        spread = jax.jit(
            functools.partial(jax.shard_map, check_vma=True)(
                attacked, mesh=mesh, in_specs=(everywhere, everywhere, rows, rows, rows, rows, rows), out_specs=rows
            )
        )
        arguments = (attack, smooth_model(scale=2.0), key, images, labels, epsilon, given)
        for one, many in zip(jax.jit(attacked)(*arguments), spread(*arguments), strict=True):
            assert len(many.sharding.device_set) == 8
            np.testing.assert_allclose(one, many, atol=1e-5, err_msg=name)
        print(f"equal: {name}")


if __name__ == "__main__":
    main()
