"""Segmentation in results: cases in three dimensions, intervals over them, and the worst case of a slice."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jax_advtrain.data import Dataset
from jax_advtrain.evaluation import results, segmented, volumes
from jax_advtrain.evaluation.attack_dataset import attack_dataset
from jax_advtrain.evaluation.evaluate import evaluate
from jax_advtrain.evaluation.margin_survey import survey_margins
from jax_advtrain.evaluation.records import Outcome, make_record, worst_segmentation
from jax_advtrain.segmentation import segmentation

CLASSES = ("background", "front", "back")


def cases(seed=0, groups=(4, 4, 7, 7, 7, 9)) -> tuple[Dataset, np.ndarray]:
    """Slices of cases, and predictions that are partly right; case 9 has no "back" and none is predicted."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, (len(groups), 6, 5)).astype(np.int32)
    prediction = np.where(random.random(labels.shape) < 0.7, labels, random.integers(0, 3, labels.shape))
    labels[-1], prediction[-1] = np.minimum(labels[-1], 1), np.minimum(prediction[-1], 1)
    data = Dataset(
        name="toy",
        images=np.zeros((*labels.shape, 1), np.float32),
        labels=labels,
        ids=np.arange(len(groups), dtype=np.int64) + 10,
        class_names=CLASSES,
        groups=np.array(groups, np.int64),
        group_names=tuple(f"case{number}" for number in range(10)),
        spacing=np.tile([2.0, 1.0, 1.0], (10, 1)),
    )
    return data, prediction.astype(np.uint8)


def test_cases_are_scored_in_three_dimensions():
    data, prediction = cases()
    scores = segmented.score_cases(prediction, data)
    assert scores.groups.tolist() == [4, 7, 9]
    for row, group in enumerate((4, 7)):
        here = data.groups == group
        np.testing.assert_allclose(scores.dice[row], volumes.dice(prediction[here], data.labels[here], 3))
        distance = volumes.hausdorff95(prediction[here], data.labels[here], 3, (2.0, 1.0, 1.0))
        np.testing.assert_allclose(scores.hausdorff95[row], distance)
    one = volumes.hausdorff95(prediction[-1], data.labels[-1], 3)  # one slice is no volume
    np.testing.assert_allclose(scores.hausdorff95[2], one)
    assert np.isnan(scores.dice[2, 1])
    groups, dice = volumes.dice_by_case(volumes.overlaps(prediction, data.labels, 3), data.groups)
    assert groups.tolist() == [4, 7, 9]
    np.testing.assert_allclose(dice, scores.dice)
    np.testing.assert_allclose(volumes.class_means(dice), [dice[:, 0].mean(), dice[:2, 1].mean()])


def test_intervals_are_over_cases():
    data, prediction = cases()
    scores = segmented.score_cases(prediction, data)
    found = segmented.summary(scores, data)
    dice = found["dice"]
    assert found["cases"] == 3 and found["hausdorff95"]["unit"] == "mm"
    assert [one["class"] for one in dice["per_class"]] == ["front", "back"]
    assert [one["cases"] for one in dice["per_class"]] == [3, 2]
    by_case = [scores.dice[0].mean(), scores.dice[1].mean(), scores.dice[2, 0]]
    assert dice["mean"]["value"] == pytest.approx(np.mean(by_case))
    low, high = dice["mean"]["low"], dice["mean"]["high"]
    assert min(by_case) - 1e-9 <= low < dice["mean"]["value"] < high <= max(by_case) + 1e-9
    nothing = segmented.mean_over_cases(np.full(3, np.nan))
    assert nothing == {"value": None, "low": None, "high": None, "cases": 0}
    single = segmented.mean_over_cases(np.array([0.5, np.nan]))
    assert single == {"value": 0.5, "low": None, "high": None, "cases": 1}
    random = np.random.default_rng(0)
    wide, narrow = (segmented.mean_over_cases(random.normal(0.5, 0.1, n)) for n in (10, 1000))
    assert narrow["high"] - narrow["low"] == pytest.approx(2 * 1.96 * 0.1 / np.sqrt(1000), rel=0.15)
    assert wide["high"] - wide["low"] > 4 * (narrow["high"] - narrow["low"])


def test_dense_labels_need_their_task():
    data, _ = cases()

    def logits_fn(images):
        return jnp.broadcast_to(images, (*images.shape[:3], 3))

    for ask in (attack_dataset, survey_margins, evaluate):
        with pytest.raises(ValueError, match="labels of 'toy' are one a pixel: give task"):
            given = {attack_dataset: (None, logits_fn, data), survey_margins: (logits_fn, data, [0.1])}
            ask(*given.get(ask, (logits_fn, data, [], {})))
    with pytest.raises(ValueError, match="give one score a class for each pixel"):
        attack_dataset(None, lambda images: images[:, 0, 0], data, task=segmentation(0.6))


def outcome(name, dice, right, norm="l2", epsilon=1.0) -> Outcome:
    count = len(dice)
    record = make_record(name, np.array(right), None, 3, norm=norm, epsilon=epsilon)
    prediction = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 2, 2)) + 10 * len(name)
    return Outcome(record, np.array(right), prediction, np.arange(count) * 0.1, 1 - np.array(dice), np.array(dice))


def test_the_lowest_dice_of_a_slice_wins():
    clean = outcome("clean", [0.9, 0.9, 0.5, 0.9, 0.9], [True, True, False, True, True], None, 0.0)
    one = outcome("fgsm", [0.7, 0.4, 0.6, 0.95, 0.3], [True, False, True, True, True])
    other = outcome("pgd-20", [0.7, 0.5, 0.7, 0.8, 0.2], [True, False, True, True, False])
    (found,) = worst_segmentation(clean, [one, other])
    # The earlier of a tie; the lower; clean, whose image nothing worsened; right, but lower; the lower again.
    assert found.winner.tolist() == [1, 1, 0, 2, 2]
    np.testing.assert_allclose(1 - found.score, [0.7, 0.4, 0.5, 0.8, 0.2])
    assert found.right.tolist() == [True, False, False, True, False]
    assert found.record.correct == 2 and found.record.per_class == ()
    for sample, winner in enumerate(found.winner):
        np.testing.assert_array_equal(found.prediction[sample], (clean, one, other)[winner].prediction[sample])


def test_results_hold_the_cases(tmp_path):
    data, prediction = cases()
    scores = segmented.score_cases(prediction, data)
    summary = segmented.summary(scores, data)
    right = np.array([True, False, True, True, False, True])
    records = [
        dataclasses.replace(make_record("clean", right, None, 3), segmentation=summary),
        *(
            dataclasses.replace(make_record(name, right, None, 3, norm="l2", epsilon=1.0), segmentation=summary)
            for name in ("pgd-20-task", "worst-of")
        ),
    ]
    per_case = segmented.per_case_arrays(data, {("clean", None, 0.0): scores, ("pgd-20-task", "l2", 1.0): scores})
    results.write_results(tmp_path, model={"name": "unet"}, data=data.fingerprint(), records=records, per_case=per_case)
    found = results.read_results(tmp_path)
    assert results.records_of(found) == records
    curve = found["headline"][0]
    assert curve["dice"] == [summary["dice"]["mean"]["value"]] * 2 and curve["dice_area"] == pytest.approx(
        curve["dice"][0]
    )
    kept = results.read_per_case(tmp_path)
    assert kept["case"].tolist() == ["case4", "case7", "case9"]
    np.testing.assert_allclose(kept["dice/pgd-20-task/l2/1.0"], scores.dice, rtol=1e-6)
    table = results.results_table(found)
    assert table[0][:5] == ["attacked in", "epsilon", "Dice", "95% interval", "Dice front"] and len(table) == 3
    broken = {**found, "records": [{**found["records"][0], "segmentation": {"cases": 3}}]}
    with pytest.raises(ValueError, match="does not fit the schema"):
        results.check_results(broken)
    assert results.read_per_case(tmp_path / "nowhere") == {}
