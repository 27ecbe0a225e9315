"""The parts of the class-wise analysis on small hand-made arrays: closed forms, and SciPy as the second writing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jax_advtrain.evaluation import classwise
from jax_advtrain.evaluation.classwise import comparing, consistency, epochs, flow, head, home, superclasses
from jax_advtrain.evaluation.classwise.observations import Observed, observed
from jax_advtrain.evaluation.results import sample_key


def samples(*rows: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions from (label, prediction, how many)."""
    labels = np.concatenate([np.full(count, label) for label, _, count in rows])
    return labels, np.concatenate([np.full(count, prediction) for _, prediction, count in rows])


# --- Per class ---


def test_wilson_is_that_of_the_textbook():
    # Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    low, high = classwise.wilson(np.array([81, 15, 0, 1]), np.array([263, 148, 20, 29]))
    assert low == pytest.approx([0.2553, 0.0624, 0.0, 0.0061], abs=5e-5)
    assert high == pytest.approx([0.3662, 0.1605, 0.1611, 0.1718], abs=5e-5)


def test_a_class_without_samples_divides_by_nothing():
    labels, prediction = samples((0, 0, 8), (0, 1, 2), (2, 2, 5))
    table = classwise.class_table(labels, labels == prediction, 4)
    assert table.n.tolist() == [10, 0, 5, 0] and table.correct.tolist() == [8, 0, 5, 0]
    assert table.accuracy[[0, 2]].tolist() == [0.8, 1.0] and np.isnan(table.accuracy[[1, 3]]).all()
    assert (table.low[1], table.high[1]) == (0.0, 1.0)
    found = classwise.spread(table)
    assert (found.best_class, found.worst_class) == (2, 0)
    assert found.discrepancy == pytest.approx(0.2) and found.deviation == pytest.approx(0.1)
    assert found.variation == pytest.approx(0.1 / 0.9) and found.worst_shares[[1, 3]].tolist() == [0, 0]
    assert np.isnan(classwise.weakness(table)[[1, 3]]).all()
    nothing = classwise.spread(classwise.class_table(np.zeros(0, int), np.zeros(0, bool), 3))
    assert nothing.worst_class == -1 and np.isnan(nothing.discrepancy)


def test_equal_classes_are_within_noise_and_a_weak_one_is_not():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(10), 100)
    p_values = [
        classwise.spread(classwise.class_table(labels, rng.random(1000) < 0.7, 10), resamples=400).p_value
        for _ in range(200)
    ]
    # Under equality p values are uniform: 5% lie below 0.05. 200 draws: 24 or more have a probability of 1e-4.
    assert sum(p < 0.05 for p in p_values) < 24
    weak = rng.random(1000) < np.where(labels == 3, 0.4, 0.7)
    table = classwise.class_table(labels, weak, 10)
    found = classwise.spread(table)
    assert found.p_value < 0.01 and found.worst_class == 3 and found.worst_shares[3] > 0.95
    p_values = classwise.weakness(table)
    assert p_values[3] < 1e-4 and (np.delete(p_values, 3) > 0.05).all()


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match=r"labels go from 0 to 3; give them in \[0, 3\)"):
        classwise.class_table(np.array([0, 3]), np.array([True, True]), 3)
    with pytest.raises(ValueError, match="one of each a sample"):
        classwise.class_table(np.array([0, 1]), np.array([True]), 3)


# --- Flow ---

CONFUSION = np.array([[6, 4, 0], [1, 4, 0], [0, 0, 0]])


def test_flow_on_a_small_confusion():
    assert classwise.row_shares(CONFUSION).tolist() == [[0.6, 0.4, 0], [0.2, 0.8, 0], [0, 0, 0]]
    assert classwise.symmetry(CONFUSION) == pytest.approx(2 * 0.2 / 0.6)
    edges = classwise.strongest_edges(CONFUSION)
    assert [(e.source, e.target, e.count) for e in edges] == [(0, 1, 4), (1, 0, 1)]
    assert edges[0].share == 0.4 and edges[0].reverse == 0.2
    assert edges[0].p_value == pytest.approx(stats.fisher_exact([[4, 6], [1, 4]])[1])
    into_empty = classwise.strongest_edges(np.array([[1, 1], [0, 0]]))
    assert np.isnan(into_empty[0].reverse) and np.isnan(into_empty[0].p_value)
    assert np.isnan(classwise.symmetry(np.diag([3, 2])))
    labels, prediction = samples((0, 0, 6), (0, 1, 4), (1, 0, 1), (1, 1, 4))
    assert (classwise.confusion(labels, prediction, 3) == CONFUSION).all()


def test_flow_between_superclasses():
    counts = np.array([[5, 3, 1, 0], [2, 5, 0, 1], [0, 0, 8, 2], [0, 0, 0, 0]])
    found = flow.grouped(counts, (0, 0, 1, 1))
    assert found.matrix.tolist() == [[15, 2], [0, 10]]
    assert found.inside == pytest.approx(7 / 9) and found.expected == pytest.approx(1 / 3)


@st.composite
def predictions(draw):
    classes = draw(st.integers(2, 6))
    size = draw(st.integers(1, 60))
    numbers = st.lists(st.integers(0, classes - 1), min_size=size, max_size=size)
    return classes, np.array(draw(numbers)), np.array(draw(numbers)), np.array(draw(numbers))


@given(predictions())
@settings(max_examples=40, deadline=None)
def test_invariants(made):
    classes, labels, weaker, stronger = made
    counts = classwise.confusion(labels, weaker, classes)
    sums = classwise.row_shares(counts).sum(axis=1)
    there = np.bincount(labels, minlength=classes) > 0
    assert np.allclose(sums, there) and counts.sum() == len(labels)
    table = classwise.class_table(labels, labels == weaker, classes)
    assert (table.low <= np.where(there, table.accuracy, 0) + 1e-12).all()
    assert (table.high >= np.where(there, table.accuracy, 1) - 1e-12).all()
    assert np.trace(counts) == table.correct.sum()
    right = np.stack([labels == weaker, labels == stronger])
    accuracies = np.stack([classwise.class_table(labels, one, classes).accuracy for one in right])
    drawn = classwise.resampled_accuracies(labels, right, classes, resamples=20)
    assert (np.isnan(drawn) == ~there).all() and np.nanmin(drawn) >= 0 and np.nanmax(drawn) <= 1 + 1e-12
    found = classwise.agreement(["weaker", "stronger"], accuracies, drawn)
    for matrix in (found.spearman, found.kendall):
        assert np.allclose(matrix, matrix.T, equal_nan=True)
        assert all(np.isnan(one) or one == 1 for one in np.diag(matrix))
        assert np.isnan(matrix).any() or np.abs(matrix).max() <= 1
    gain = classwise.gain(("weaker", right[0]), ("stronger", right[1]), labels, classes, resamples=20)
    assert np.allclose(gain.per_class, accuracies[0] - accuracies[1], equal_nan=True)
    assert np.isnan(gain.share) == (not gain.mean > 1e-12 / classes)
    assert 0 <= classwise.mcnemar(*right) <= 1


# --- Consistency ---


def test_rank_correlations_are_scipys():
    rng = np.random.default_rng(0)
    accuracies = rng.integers(0, 6, (3, 12)) / 6  # ties among them
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert consistency.spearman(accuracies)[i, j] == pytest.approx(stats.spearmanr(*accuracies[[i, j]]).statistic)
        assert consistency.kendall(accuracies)[i, j] == pytest.approx(stats.kendalltau(*accuracies[[i, j]]).statistic)


def test_rows_without_differences_have_no_ranking_and_classes_without_samples_take_no_part():
    accuracies = np.array([[0.1, 0.5, np.nan, 0.9], [0.2, 0.3, 0.0, 0.4], [0.0, 0.0, 0.0, 0.0]])
    found = classwise.agreement(["a", "b", "none"], accuracies, np.stack([accuracies] * 3))
    assert found.spearman[0, 1] == 1 and found.kendall[0, 1] == 1
    assert np.isnan(found.spearman[2]).all() and np.isnan(found.kendall_high[:, 2]).all()
    assert (found.spearman_low[0, 1], found.spearman_high[0, 1]) == (1, 1)


# --- Gains ---


def test_where_a_gain_falls():
    labels = np.repeat(np.arange(4), 10)
    # Right under the weaker attack: 2, 4, 8, 10 of ten; the stronger takes 2, 1, 1, 0 of them.
    weaker = np.concatenate([np.arange(10) < n for n in (2, 4, 8, 10)])
    stronger = np.concatenate([np.arange(10) < n for n in (0, 3, 7, 10)])
    found = classwise.gain(("w", weaker), ("s", stronger), labels, 4)
    assert found.per_class == pytest.approx([0.2, 0.1, 0.1, 0.0]) and found.mean == pytest.approx(0.1)
    assert found.weaker_half == (0, 1) and found.share == pytest.approx(0.75)
    assert found.share_low <= 0.75 <= found.share_high
    assert found.p_value == pytest.approx(2 * 0.5**4)  # 4 samples changed, all one way
    middle = classwise.gain(("w", weaker[:30]), ("s", stronger[:30]), labels[:30], 3)
    assert middle.weaker_half == (0,) and middle.share == pytest.approx((0.2 + 0.05) / 0.4)
    back = classwise.gain(("s", stronger), ("w", weaker), labels, 4)
    assert np.isnan(back.share) and back.mean == pytest.approx(-0.1)
    chain = classwise.chain_gains({"a": weaker, "b": stronger, "c": stronger}, labels, 4)
    assert [(one.weaker, one.stronger) for one in chain] == [("a", "b"), ("b", "c"), ("a", "c")]
    assert chain[1].p_value == 1


# --- Confidence ---


def test_variance_of_the_confidence():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[1, 0, 0], [0, 1, 0], [1 / 3] * 3, [1 / 3] * 3], np.float32)
    found = classwise.class_confidence(labels, probabilities, 3)
    assert found.distribution[0] == pytest.approx([0.5, 0.5, 0]) and np.isnan(found.distribution[2]).all()
    # Each image is sure, (K - 1) / K^2 = 2/9; their mean is less so: var(1/2, 1/2, 0) = 1/18.
    assert found.image_variance[:2] == pytest.approx([2 / 9, 0], abs=1e-7)
    assert found.variance[:2] == pytest.approx([1 / 18, 0], abs=1e-7)
    assert found.on_truth[:2] == pytest.approx([0.5, 1 / 3]) and np.isnan(found.on_truth[2])


def test_temperatures_and_their_winners():
    labels = np.array([0, 0, 1, 1])
    swept = {
        1.0: (np.array([True, False, False, True]), np.array([-1.0, 2.0, 1.0, -1.0])),
        0.1: (np.array([False, False, False, True]), np.array([0.5, 3.0, 1.0, -2.0])),
    }
    found = classwise.temperature_table(labels, swept, 3)
    assert found.accuracy[:, :2].tolist() == [[0.5, 0.5], [0.0, 0.5]] and np.isnan(found.accuracy[:, 2]).all()
    assert found.worst[:2].tolist() == [0.0, 0.5]
    # Sample 0: only 0.1 fools it. Sample 1: 0.1 by the larger margin. Sample 2: a tie, the earlier. Sample 3: none.
    assert found.winners.tolist() == [[0, 1, 0], [2, 0, 0]]
    assert found.p_values.tolist() == [1, 1]


# --- Last layer ---


def test_the_head_is_found_by_what_it_does():
    rng = np.random.default_rng(0)
    images = rng.random((6, 3))
    params = {"a": {"kernel": rng.normal(size=(3, 3))}, "b": {"kernel": rng.normal(size=(3, 3)), "bias": np.zeros(3)}}

    def linear(params):
        return np.maximum(images @ np.abs(params["a"]["kernel"]), 0) @ params["b"]["kernel"] + params["b"]["bias"]

    def cosine(params):
        kernel = np.asarray(params["b"]["kernel"])
        return linear({**params, "b": {"kernel": kernel / np.linalg.norm(kernel, axis=0), "bias": 0}})

    assert (classwise.find_kernel(linear, params, 3) == params["b"]["kernel"]).all()
    assert classwise.find_kernel(cosine, params, 3) is None
    assert classwise.find_kernel(linear, params, 4) is None


def test_norms_against_accuracy():
    kernel = np.diag([1.0, 2.0, 3.0, 4.0])
    found = classwise.norm_relation(kernel, np.array([0.1, 0.2, 0.3, np.nan]))
    assert found.norms.tolist() == [1, 2, 3, 4] and found.pearson == pytest.approx(1) and found.spearman == 1
    assert np.isnan(head.norm_relation(kernel, np.array([0.5, 0.5, 0.5, 0.5])).pearson)
    assert np.isnan(head.norm_relation(kernel, np.array([0.5, 0.1, np.nan, np.nan])).spearman)


# --- Epochs ---


def line(epoch: int, clean, robust, n_robust=None):
    counts = {"clean": {"n": [100, 100], "correct": clean}, "robust": {"n": n_robust or [100, 100], "correct": robust}}
    return {"epoch": epoch, "validation": {"per_class": counts}}


def test_when_the_discrepancy_appears():
    lines = [line(1, [90, 92], [50, 52]), {"epoch": 2}, line(3, [90, 95], [40, 80]), line(4, [91, 95], [40, 85])]
    found = epochs.from_log(lines)
    assert found is not None and found.epochs.tolist() == [1, 3, 4] and found.appears == 3
    assert found.discrepancy_robust == pytest.approx([0.02, 0.4, 0.45]) and found.same_ranking.tolist() == [1, 1, 1]
    within = epochs.from_log([*lines, line(5, [90, 90], [50, 51])])
    assert within is not None and within.appears is None
    few = epochs.from_log([line(1, [90, 90], [5, 9], n_robust=[10, 10])])
    assert few is not None and few.robust.tolist() == [[0.5, 0.9]]


def test_a_log_without_classes_has_no_curves():
    assert epochs.from_log([{"epoch": 1, "validation": {"clean_accuracy": 0.9}}, {"epoch": 2}]) is None
    assert epochs.from_log([]) is None


# --- Super-classes ---


def test_known_superclasses():
    cifar10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    found = superclasses.known(cifar10)
    assert found is not None and found.names == ("animals", "vehicles")
    assert [cifar10[k] for k, group in enumerate(found.groups) if group] == ["airplane", "automobile", "ship", "truck"]
    hundred = [name for members in superclasses._CIFAR100.values() for name in members]
    found = superclasses.known(sorted(hundred))
    assert found is not None and len(found.names) == 20 and np.bincount(found.groups).tolist() == [5] * 20
    assert superclasses.known([str(digit) for digit in range(10)]) is None
    assert superclasses.known(["cat", "dog"]) is None


def test_superclasses_of_a_file(tmp_path):
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"even": ["0", "2"], "odd": ["1"]}))
    assert superclasses.read(path, ("0", "1", "2")) == (("even", "odd"), (0, 1, 0))
    for content, expected in (
        ('{"even": ["0", "22"], "odd": ["1"]}', "class '22' is not known"),
        ('{"even": ["0", "2"]}', "no super-class for 1"),
        ('{"even": ["0", "2"], "odd": ["1", "0"]}', "has 0 twice"),
        ("[1]", "must hold"),
        ("{", "no JSON"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=expected):
            superclasses.read(path, ("0", "1", "2"))
    with pytest.raises(ValueError, match="No such file"):
        superclasses.read(tmp_path / "none.json", ("0",))


# --- Observations ---


def test_finished_evaluations_are_read():
    arrays = {
        "id": np.array([7, 9]),
        "label": np.array([0, 1], np.int32),
        "clean_prediction": np.array([0, 0], np.int32),
        sample_key("prediction", "linf", 0.1): np.array([1, 0], np.int32),
    }
    seen = classwise.from_per_sample(arrays, ("a", "b"), "linf", 0.1)
    assert seen.ids.tolist() == [7, 9] and seen.worst().tolist() == [False, False]
    with pytest.raises(ValueError, match=r"holds no l2/0.5; it holds linf/0.1"):
        classwise.from_per_sample(arrays, ("a", "b"), "l2", 0.5)


@pytest.mark.parametrize(
    ("labels", "clean", "attacked", "expected"),
    [
        ([], [], [], "there are no samples"),
        ([0, 1], [0], [0, 1], "clean_prediction is int64"),
        ([0, 1], [0, 1], [0, 2], "pgd goes from 0 to 2, the 2 classes from 0 to 1"),
        ([0, 1], [0.0, 1.0], [0, 1], "give whole numbers"),
    ],
)
def test_bad_observations(labels, clean, attacked, expected):
    with pytest.raises(ValueError, match=expected):
        observed(np.array(labels, int), np.array(clean), {"pgd": np.array(attacked, int)}, ("a", "b"))


# --- Runs against each other ---


def made(right: np.ndarray, labels: np.ndarray, names=("a", "b"), ids=None) -> Observed:
    attacked = np.where(right, labels, (labels + 1) % len(names))
    return observed(labels, labels, {"pgd": attacked}, names, ids=ids)


def test_differences_within_noise_are_called_so():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 500)
    base = rng.random(1000)
    seeds = [made(base + 0.02 * rng.normal(size=1000) < 0.6, labels) for _ in range(4)]
    strong = [made(base + 0.02 * rng.normal(size=1000) < 0.75, labels) for _ in range(2)]
    runs = [comparing.Run(f"one-{i}", "one", seen) for i, seen in enumerate(seeds[:2])]
    runs += [comparing.Run(f"same-{i}", "same", seen) for i, seen in enumerate(seeds[2:])]
    runs += [comparing.Run(f"strong-{i}", "strong", seen) for i, seen in enumerate(strong)]
    found = comparing.compare(runs, norm="linf", epsilon=0.1, resamples=200)
    pairs = {(one["first"], one["second"]): one for one in found["pairs"]}
    assert not pairs["one", "same"]["robust"]["real"] and not pairs["one", "same"]["worst_class"]["real"]
    apart = pairs["one", "strong"]
    assert apart["robust"]["real"] and apart["robust"]["value"] == pytest.approx(-0.15, abs=0.04)
    assert apart["worst_class"]["real"] and apart["robust"]["high"] < 0
    assert apart["clean"]["value"] == 0 and not apart["clean"]["real"]
    assert any("one against same" in line and "within noise" in line for line in found["verdict"])
    from jax_advtrain.evaluation.classwise import files

    files.check(found)


def test_one_seed_each_is_mcnemar():
    labels = np.repeat([0, 1], 20)
    one, other = np.ones(40, bool), np.ones(40, bool)
    other[:6] = False
    runs = [comparing.Run("x", "x", made(one, labels)), comparing.Run("y", "y", made(other, labels))]
    found = comparing.compare(runs, norm="linf", epsilon=0.1)
    pair = found["pairs"][0]
    assert pair["robust"]["p_value"] == pytest.approx(2 * 0.5**6) and pair["robust"]["seeds_p"] is None
    assert pair["per_class"][0]["value"] == pytest.approx(0.3) and pair["per_class"][1]["p_value"] == 1
    assert any("how much training itself varies is not known" in line for line in found["verdict"])


def test_other_classes_or_samples_are_refused():
    labels = np.array([0, 1, 1, 0])
    first = made(labels == 0, labels)
    with pytest.raises(ValueError, match=r"only x has b; only y has c\)"):
        comparing.refuse_others(first, made(labels == 0, labels, names=("a", "c")), ("x", "y"))
    with pytest.raises(ValueError, match="in another order"):
        comparing.refuse_others(first, made(labels == 0, labels, names=("b", "a")), ("x", "y"))
    with pytest.raises(ValueError, match="tested on 4 samples and y on 4, 2 of them the same"):
        comparing.refuse_others(first, made(labels == 0, labels, ids=np.array([2, 3, 4, 5])), ("x", "y"))
    with pytest.raises(ValueError, match="two runs or more"):
        comparing.compare([comparing.Run("x", "x", first)], norm="linf", epsilon=0.1)


# --- Homing ---


def test_homing_matches_images_by_id():
    names = ("a", "b", "c")
    ids, labels = np.arange(6), np.array([0, 0, 0, 1, 2, 2])
    # Attacked: 0 and 1 into c, 2 into b, 3 holds; 4 and 5 are of the class that is left out.
    full = observed(labels, np.array([0, 0, 0, 1, 2, 0]), {"pgd": np.array([2, 2, 1, 1, 0, 0])}, names, ids=ids)
    # Without c, in another order: image 1 can still be attacked, into b; image 2 no longer.
    order = np.array([3, 1, 0, 2])
    without = observed(labels[order], labels[order], {"pgd": np.array([1, 1, 0, 0])}, ("a", "b"), ids=ids[order])
    found = home.home(full, without, (0, 1), "pgd")
    assert (found.left_out, found.n, found.attacked_into, found.still, found.share) == ("c", 4, 2, 1, 0.5)
    assert (found.others, found.others_fooled) == (1, 0)
    assert found.sources == {0: (2, 1)} and found.targets == {1: 1}
    content = home.content([found], names, attack="pgd", norm="linf", epsilon=0.1, split="test")
    from jax_advtrain.evaluation.classwise import files

    files.check(content)
    assert content["verdict"][0].startswith("c: 2 images were attacked into it; without the class 50% of them")
    with pytest.raises(ValueError, match="the same images"):
        home.home(full, without._replace(ids=without.ids + 1), (0, 1), "pgd")
    with pytest.raises(ValueError, match="leaves out one class"):
        home.home(full, without, (0,), "pgd")


def test_homing_where_nothing_went_into_the_class():
    labels = np.array([0, 1, 2])
    full = observed(labels, labels, {"pgd": labels}, ("a", "b", "c"))
    found = home.home(full, observed(labels[:2], labels[:2], {"pgd": labels[:2]}, ("a", "b")), (0, 1), "pgd")
    assert found.attacked_into == 0 and np.isnan(found.share) and (found.low, found.high) == (0, 1)
    content = home.content([found], ("a", "b", "c"), attack="pgd", norm="linf", epsilon=0.1, split="test")
    assert content["classes"][0]["share"] is None and content["verdict"] == ["c: no image was attacked into it"]
