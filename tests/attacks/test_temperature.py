"""Temperature-PGD: T = 1 is the attack itself, a sweep is the strongest of its temperatures, and it says which won."""

import dataclasses

import numpy as np
import pytest
from toy_problems import keys, pixels, right_labels, run, same_bits, smooth_model

from jax_advtrain import attacks
from jax_advtrain.attacks.temperature import temperature_sweep, winners_by_class

BATCH, CLASSES = 16, 4
LABELS = np.arange(BATCH) % CLASSES


def pgd(**settings):
    return attacks.pgd(**{"epsilon": 0.15, "num_steps": 2} | settings)


def model(scale=2.0):
    return smooth_model(scale=scale, classes=CLASSES)


def test_temperature_one_is_the_attack_bit_for_bit():
    images, logits_fn = pixels(BATCH), model()
    attack = pgd(num_steps=10)
    plain = run(attack, keys(BATCH), logits_fn, images, LABELS)
    tempered = dataclasses.replace(attack, loss=attacks.with_temperature("ce", 1.0))
    sweep = temperature_sweep(attack, [1.0])
    for other in (tempered, sweep):
        for one, two in zip(plain, run(other, keys(BATCH), logits_fn, images, LABELS), strict=True):
            assert same_bits(one, two)


@pytest.mark.parametrize("per_class", [False, True])
def test_a_sweep_is_the_strongest_of_its_temperatures_and_counts_who_won(per_class):
    images, logits_fn, attack = pixels(BATCH, seed=1), model(8.0), pgd(epsilon=0.12, num_steps=4, start="clean")
    labels = right_labels(logits_fn, images)
    scale = np.array([1.0, 0.05, 30.0])
    if per_class:
        scale = scale[:, None] * np.array([1.0, 0.5, 2.0, 3.0])
    sweep = temperature_sweep(attack, scale, per_class=per_class)
    found = run(sweep, keys(BATCH), logits_fn, images, labels)
    alone = []
    for temperature in scale:
        loss = attacks.with_temperature("ce", temperature, per_class=per_class)
        alone.append(run(dataclasses.replace(attack, loss=loss), keys(BATCH), logits_fn, images, labels))
    scores = np.stack([result.score for result in alone])
    np.testing.assert_allclose(found.score, scores.max(axis=0), atol=1e-4)
    np.testing.assert_array_equal(found.is_right, np.all([result.is_right for result in alone], axis=0))
    picked = scores[found.winner, np.arange(BATCH)]
    np.testing.assert_allclose(picked, scores.max(axis=0), atol=1e-4)
    assert len(set(found.winner)) > 1
    counts = winners_by_class(found, labels, CLASSES, 3)
    expected = np.zeros((3, CLASSES), int)
    for winner, label, right in zip(found.winner, labels, found.is_right, strict=True):
        expected[winner, label] += not right
    np.testing.assert_array_equal(counts, expected)
    assert 0 < expected.sum() < BATCH
