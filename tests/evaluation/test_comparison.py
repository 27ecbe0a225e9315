"""The numbers of a comparison against cases worked out by hand."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from jax_advtrain.evaluation import comparison, results
from jax_advtrain.evaluation.equilibrium import agreement
from jax_advtrain.evaluation.paired import compare_pairs, holm, within_noise
from jax_advtrain.evaluation.two_classes import calibration_error, two_class_metrics

N = 8
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])


def evaluated(clean, attacked, *, ids=None, epsilon=0.1, name="digits") -> comparison.Evaluated:
    """An evaluation whose clean and PGD verdicts are given as texts: "11110000", 1 = right."""

    def outcome(attack, text, norm=None, radius=0.0):
        right = np.array([letter == "1" for letter in text])
        record = results.make_record(attack, right, LABELS, 2, norm=norm, epsilon=radius)
        prediction = np.where(right, LABELS, 1 - LABELS)
        return results.Outcome(record, right, prediction, np.zeros(N), np.zeros(N), np.full(N, 0.75))

    first, attacks = outcome("clean", clean), [outcome("pgd-10-ce", attacked, "linf", epsilon)]
    cases = results.worst_of(first, attacks, LABELS, 2)
    records = [first.record, attacks[0].record, *(case.record for case in cases)]
    zeros = dict(version="1", split="test", count=N, labels_sha256="0" * 64, ids_sha256="f" * 64)
    built = results.build_results({}, {"name": name, **zeros}, records)
    ids = np.arange(N) if ids is None else ids
    return comparison.Evaluated(built, results.per_sample_arrays(ids, LABELS, first, attacks, cases))


def facts(*evaluations, seed=0, seconds=10.0) -> comparison.RunFacts:
    return comparison.RunFacts(seed, seconds, evaluations)


def row(compared, what, attack, norm=None):
    return next(r for r in compared["rows"] if (r["what"], r["attack"], r["norm"]) == (what, attack, norm))


def test_rows_by_hand():
    compared = comparison.compare_methods(
        {
            "ima": [
                facts(evaluated("11111110", "11101100"), seed=0, seconds=10.0),
                facts(evaluated("11111111", "11111110"), seed=1, seconds=30.0),
            ],
            "standard": [facts(evaluated("11111111", "11000000"), seconds=2.0)],
        }
    )
    clean = row(compared, "accuracy", "clean")
    assert clean["values"]["ima"] == {
        "mean": pytest.approx(15 / 16),
        "deviation": pytest.approx(np.sqrt(2) / 16),
        "each": [7 / 8, 1.0],
    }
    assert (
        clean["values"]["standard"] == {"mean": 1.0, "deviation": None, "each": [1.0]} and clean["best"] == "standard"
    )
    worst = row(compared, "accuracy", "worst-of", "linf")
    assert worst["values"]["ima"]["each"] == [5 / 8, 7 / 8] and worst["best"] == "ima"
    assert row(compared, "worst class", "worst-of", "linf")["values"]["ima"]["each"] == [2 / 4, 3 / 4]
    assert row(compared, "worst class", "worst-of", "linf")["values"]["standard"]["mean"] == 0.0
    # One trapezoid from clean to the only radius.
    area = row(compared, "area", "worst-of", "linf")["values"]
    assert area["ima"]["each"] == pytest.approx([(7 / 8 + 5 / 8) / 2, (1 + 7 / 8) / 2])
    time = row(compared, "training seconds", "")
    assert time["values"]["ima"]["mean"] == 20.0 and time["best"] == "standard"
    assert row(compared, "sensitivity", "worst-of", "linf")["values"]["ima"]["each"] == [2 / 4, 3 / 4]
    assert row(compared, "specificity", "worst-of", "linf")["values"]["ima"]["each"] == [3 / 4, 1.0]
    assert row(compared, "balanced accuracy", "worst-of", "linf")["values"]["ima"]["each"] == [5 / 8, 7 / 8]
    # Always 0.75 sure: off by |accuracy - 0.75|.
    assert row(compared, "ECE", "worst-of", "linf")["values"]["ima"]["each"] == pytest.approx([1 / 8, 1 / 8])
    assert compared["samples"] == [N] and compared["methods"]["ima"]["seeds"] == [0, 1]


def test_an_evaluation_beside_the_main_one():
    compared = comparison.compare_methods(
        {
            "a": [facts(evaluated("11111111", "11111111"), evaluated("11111111", "11110000"))],
            "b": [facts(evaluated("11111111", "11111111"), evaluated("11111111", "00000000"))],
        }
    )
    beside = row(compared, "accuracy", "pgd-10-ce (first 8)", "linf")
    assert beside["values"]["a"]["mean"] == 0.5 and beside["values"]["b"]["mean"] == 0.0
    (test,) = (one for one in compared["tests"] if one["attack"] == "pgd-10-ce (first 8)")
    # Four samples, all in favour of the first: 2 / 2^4.
    assert test["difference"] == 0.5 and test["p_value"] == pytest.approx(0.125) and test["within_noise"]


def test_unlike_runs_are_refused():
    like = facts(evaluated("11111111", "11111111"))
    for other, says in (
        (evaluated("11111111", "11111111", name="moons"), "evaluated on other data"),
        (evaluated("11111111", "11111111", ids=np.arange(N) + 1), "other samples"),
        (evaluated("11111111", "11111111", epsilon=0.2), "evaluated otherwise than a, seed 0"),
    ):
        with pytest.raises(ValueError, match=says) as refused:
            comparison.compare_methods({"a": [like], "b": [facts(other)]})
        assert "\n" not in str(refused.value) and "b, seed 0" in str(refused.value)
    with pytest.raises(ValueError, match="a run of every method"):
        comparison.compare_methods({})


def test_mcnemar_by_hand():
    first = np.zeros((1, 100), bool)
    second = np.zeros((1, 100), bool)
    first[0, :10], second[0, 10:12] = True, True
    found = compare_pairs(first, second)
    assert found.difference == pytest.approx(0.08)
    # 10 against 2 of 12 fair coins: twice the tail of 2 or fewer heads.
    assert found.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert found.low < 0.08 < found.high and found.low == pytest.approx(0.08 - 1.96 * 0.0338, abs=0.01)
    assert found.p_seeds is None
    assert compare_pairs(first, first) == (0.0, 0.0, 0.0, 1.0, None)


def test_seeds():
    rng = np.random.default_rng(1)
    strong, weak = rng.random((3, 2000)) < 0.9, rng.random((3, 2000)) < 0.8
    found = compare_pairs(strong, weak)
    assert found.low < found.difference < found.high and found.p_value < 0.001
    one, other = strong.mean(axis=1), weak.mean(axis=1)
    assert found.p_seeds == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue)
    alike = compare_pairs(strong, rng.random((3, 2000)) < 0.9)
    assert alike.p_value > 0.01
    # The same samples, told in the other order: the sign turns and nothing else.
    assert compare_pairs(weak, strong).difference == -found.difference


def test_random_signs_keep_their_level():
    """Under the null hypothesis, p values below 0.1 come up about every tenth time (two seeds against one)."""
    rng = np.random.default_rng(0)
    p_values = [
        compare_pairs(rng.random((2, 400)) < 0.8, rng.random((1, 400)) < 0.8, resamples=500).p_value for _ in range(300)
    ]
    assert 0.05 <= np.mean(np.array(p_values) <= 0.1) <= 0.16


def test_holm_and_noise():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0]) and holm([]) == []
    assert within_noise(0.06, None) and within_noise(0.01, 0.3) and not within_noise(0.01, 0.02)


def test_two_classes_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1])
    prediction = np.array([0, 0, 0, 1, 1, 0])
    confidence = np.array([0.9, 0.8, 0.6, 0.7, 0.95, 0.55])
    found = two_class_metrics(labels, prediction, confidence)
    assert (found.sensitivity, found.specificity, found.balanced_accuracy) == (0.5, 0.75, 0.625)
    positive = [0.1, 0.2, 0.4, 0.7, 0.95, 0.45]
    # Of 8 pairs one is the wrong way round: 0.45 under 0.7.
    assert found.auroc == pytest.approx(7 / 8) == roc_auc_score(labels, positive)
    blind = two_class_metrics(labels, prediction, None)
    assert blind.auroc is None and blind.ece is None and blind.sensitivity == 0.5
    # The same where the model gave NaN for the last: wrong, ranked last, and no reason to fail.
    broken = two_class_metrics(labels, np.where(np.arange(6) == 5, -1, prediction), np.r_[confidence[:5], 0.0])
    assert broken.sensitivity == 0.5 and broken.auroc == pytest.approx(4 / 8)
    alone = two_class_metrics(labels[:4], prediction[:4], confidence[:4])
    assert alone.sensitivity is None and alone.auroc is None and alone.specificity == 0.75


def test_calibration_by_hand():
    right = np.array([True, True, False, True])
    # Bins (0.6, 0.8] and (0.8, 1]: 2 samples each, |0.5 - 0.7| and |1 - 0.95|... weighing alike.
    confidence = np.array([0.95, 0.7, 0.7, 0.95])
    assert calibration_error(right, confidence, bins=5) == pytest.approx((0.2 + 0.05) / 2)
    assert calibration_error(np.array([True]), np.array([1.0])) == 0.0
    assert calibration_error(np.array([False]), np.array([0.0])) == 0.0


def test_confidence_of_the_worst_case():
    """Fooled: that of the strongest attack. Right throughout: the least of all. Wrong when clean: the clean one."""
    labels = np.array([0, 0, 0])

    def outcome(attack, right, margin, confidence, norm=None):
        right = np.array(right, bool)
        record = results.make_record(attack, right, labels, 2, norm=norm, epsilon=0.1 if norm else 0.0)
        zeros = np.zeros(3)
        return results.Outcome(record, right, (~right).astype(int), zeros, np.array(margin), np.array(confidence))

    clean = outcome("clean", [1, 1, 0], [-3.0, -3, 1], [0.9, 0.9, 0.6])
    one = outcome("one", [0, 1, 0], [1.0, -2, 1], [0.7, 0.8, 0.99], "linf")
    other = outcome("other", [0, 1, 0], [2.0, -1, 1], [0.95, 0.55, 0.99], "linf")
    (case,) = results.worst_of(clean, [one, other], labels, 2)
    assert case.confidence is not None
    np.testing.assert_allclose(case.confidence, [0.95, 0.55, 0.6])
    (silent,) = results.worst_of(clean._replace(confidence=None), [one, other], labels, 2)
    assert silent.confidence is None


def test_agreement_by_hand():
    margin = np.array([0.1, 0.2, 0.3, 0.05, 0.15, 0.3])
    distance = np.array([0.11, 0.22, 0.5, 0.0, 0.9, 0.2])
    right = np.array([True, True, True, False, True, True])
    found = np.array([True, True, True, True, False, True])
    told = agreement(margin, distance, clean_right=right, found=found, delta=0.015, ceiling=0.3)
    assert (told.n, told.wrong, told.unfound, told.compared, told.at_ceiling) == (6, 1, 1, 4, 2)
    # Ranks of the margins 1, 2, 3.5, 3.5; of the distances 1, 3, 4, 2.
    assert told.spearman == pytest.approx(stats.pearsonr([1, 2, 3.5, 3.5], [1, 3, 4, 2]).statistic)
    assert told.spearman_below is None and told.median_ratio == pytest.approx(1.1) and told.within_delta == 0.5
    free = agreement(margin, distance, clean_right=right, found=found, delta=0.0, ceiling=None)
    assert free.at_ceiling == 0 and free.spearman_below == free.spearman
    nobody = agreement(margin, distance, clean_right=~right & False, found=found, delta=0.1, ceiling=0.3)
    assert nobody.compared == 0 and nobody.median_ratio is None and nobody.spearman is None
