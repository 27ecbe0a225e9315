"""What an evaluation leaves behind: counted rightly, combined per sample, written whole, refused when broken."""

import copy
import errno
import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_advtrain.evaluation import results as res

LABELS = np.array([0, 0, 1, 1, 2, 2])
FINGERPRINT = dict(name="digits", version="1.0.0", split="test", count=6, labels_sha256="0" * 64, ids_sha256="f" * 64)
MODEL = dict(name="small_cnn", num_classes=3, checkpoint="best", step=120)


def outcome(attack, right, norm=None, epsilon=0.0, distance=0.0, logit_margin=None, labels=LABELS, **settings):
    right = np.asarray(right, bool)
    record = res.make_record(
        attack, right, labels, 3, norm=norm, epsilon=epsilon, settings=settings, passes=20, seconds=0.5
    )
    prediction = np.where(right, labels, (labels + 1) % 3)
    return res.Outcome(record, right, prediction, np.full(right.size, distance), logit_margin)


def evaluated():
    clean = outcome("clean", [1, 1, 1, 1, 1, 0])
    attacks = [
        outcome("pgd-20-ce", [1, 1, 1, 1, 0, 0], "linf", 0.1, 0.08),
        outcome("pgd-20-lm", [1, 1, 1, 0, 1, 1], "linf", 0.1, 0.09),
        outcome("pgd-20-ce", [1, 0, 0, 0, 0, 0], "linf", 0.2, 0.15),
        outcome("uniform-noise", [1, 1, 1, 1, 1, 1], "linf", 0.2, 0.2),
        outcome("pgd-20-ce", [1, 1, 1, 1, 1, 0], "l2", 0.5, 0.4),
    ]
    return clean, attacks, res.worst_of(clean, attacks, LABELS, 3)


def all_records():
    clean, attacks, cases = evaluated()
    return [clean.record, *(a.record for a in attacks), *(case.record for case in cases)]


# Counting


def test_record_counts_per_class_and_keeps_empty_classes():
    record = res.make_record("clean", np.array([True, False, True]), np.array([0, 0, 3]), 5)
    assert (record.n, record.correct) == (3, 2)
    assert record.accuracy == pytest.approx(2 / 3)
    assert record.per_class == ((2, 1), (0, 0), (0, 0), (1, 1), (0, 0))


def test_record_of_dense_labels_has_no_classes():
    assert res.make_record("clean", np.array([True]), None, 3).per_class == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(right=np.zeros(0, bool)), r"N >= 1"),
        (dict(right=np.zeros(6, int)), r"must be a bool array"),
        (dict(labels=LABELS[:5]), r"must match"),
        (dict(labels=LABELS + 1), r"\[0, 3\), got 1 to 3"),
        (dict(labels=LABELS - 1), r"got -1"),
        (dict(epsilon=-0.1), r"epsilon must be finite and >= 0, got -0.1"),
        (dict(epsilon=float("nan")), r"epsilon must be finite"),
    ],
)
def test_bad_record_is_refused_in_one_line(change, says):
    arguments = dict(right=np.ones(6, bool), labels=LABELS, norm="linf", epsilon=0.1) | change
    with pytest.raises(ValueError, match=says) as caught:
        res.make_record("pgd-20-ce", arguments.pop("right"), arguments.pop("labels"), 3, **arguments)
    assert "\n" not in str(caught.value)


# Worst case


def test_worst_of_combines_only_its_own_norm_and_epsilon_and_clean():
    _, _, cases = evaluated()
    assert [(c.record.norm, c.record.epsilon) for c in cases] == [("linf", 0.1), ("linf", 0.2), ("l2", 0.5)]
    np.testing.assert_array_equal(cases[0].right, np.array([1, 1, 1, 0, 0, 0], bool))
    np.testing.assert_array_equal(cases[1].right, np.array([1, 0, 0, 0, 0, 0], bool))
    np.testing.assert_array_equal(cases[2].right, np.array([1, 1, 1, 1, 1, 0], bool))
    assert cases[0].record.per_class == ((2, 2), (2, 1), (2, 0))
    assert cases[0].record.settings["members"] == ["clean", "pgd-20-ce", "pgd-20-lm"]
    assert cases[0].record.passes == 60
    assert cases[0].record.seconds == 1.5


def test_worst_of_names_winner_prediction_and_distance():
    _, attacks, cases = evaluated()
    assert res.attack_names(attacks) == ("clean", "pgd-20-ce", "pgd-20-lm", "uniform-noise")
    # survived x 3, the logit margin's, cross entropy's, and one that clean had lost although an attack "repaired" it
    np.testing.assert_array_equal(cases[0].winner, [-1, -1, -1, 2, 1, 0])
    np.testing.assert_array_equal(cases[0].distance, [np.inf, np.inf, np.inf, 0.09, 0.08, 0.0])
    np.testing.assert_array_equal(cases[0].prediction, [0, 0, 1, 2, 0, 0])


def test_among_attacks_that_fooled_a_sample_the_larger_logit_margin_wins_and_ties_keep_the_earlier():
    clean = outcome("clean", [1] * 6)
    # The last two are fooled by the later attack alone, with a margin that says nothing.
    first = outcome("a", [0, 0, 0, 1, 1, 1], "l2", 1.0, logit_margin=np.array([1.0, 2, 3, -9, -1, -1]))
    second = outcome("b", [0, 0, 0, 0, 0, 0], "l2", 1.0, logit_margin=np.array([2.0, 2, 1, -10, np.nan, -np.inf]))
    (case,) = res.worst_of(clean, [first, second], LABELS, 3)
    np.testing.assert_array_equal(case.winner, [2, 1, 1, 2, 2, 2])


def test_worst_of_refuses_other_samples():
    clean = outcome("clean", [1] * 6)
    other = outcome("fgsm", [1] * 5, "linf", 0.1, labels=LABELS[:5])
    with pytest.raises(ValueError, match="'fgsm' ran on 5 samples of 'test', clean on 6 of 'test'"):
        res.worst_of(clean, [other], LABELS, 3)


@st.composite
def outcomes(draw):
    n = draw(st.integers(1, 12))
    labels = np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    rights = st.lists(st.booleans(), min_size=n, max_size=n)
    places = st.tuples(st.sampled_from(["linf", "l2"]), st.sampled_from([0.1, 0.2]), rights)
    drawn = draw(st.lists(places, min_size=1, max_size=6))
    attacks = [outcome(f"a{i}", r, norm, eps, eps / 2, labels=labels) for i, (norm, eps, r) in enumerate(drawn)]
    return labels, outcome("clean", draw(rights), labels=labels), attacks


@given(outcomes())
def test_worst_of_is_at_most_every_member_and_consistent(drawn):
    labels, clean, attacks = drawn
    names = res.attack_names(attacks)
    for case in res.worst_of(clean, attacks, labels, 3):
        members = [a for a in attacks if (a.record.norm, a.record.epsilon) == (case.record.norm, case.record.epsilon)]
        for member in [clean, *members]:
            assert not (case.right & ~member.right).any()
            assert case.record.correct <= member.record.correct
        np.testing.assert_array_equal(case.right, np.logical_and.reduce([clean.right, *(m.right for m in members)]))
        np.testing.assert_array_equal(case.winner == -1, case.right)
        np.testing.assert_array_equal(case.prediction == labels, case.right)
        by_name = {m.record.attack: m for m in [clean, *members]}
        for i in np.flatnonzero(~case.right):
            assert not by_name[names[case.winner[i]]].right[i]


# Curve


@pytest.mark.parametrize(
    ("epsilons", "accuracy", "area"),
    [([0, 1], [1, 0], 0.5), ([0, 0.1, 0.4], [1, 1, 0], (0.1 + 0.15) / 0.4), ([0, 2], [0.8, 0.8], 0.8)],
)
def test_area_closed_cases(epsilons, accuracy, area):
    assert res.curve_area(epsilons, accuracy) == pytest.approx(area, abs=1e-15)


@given(
    st.lists(st.floats(1e-6, 10), min_size=1, max_size=8, unique=True),
    st.lists(st.floats(0, 1), min_size=9, max_size=9),
    st.floats(0.1, 100),
)
def test_area_lies_between_the_extremes_and_knows_no_unit(radii, heights, scale):
    epsilons = np.array([0.0, *sorted(radii)])
    heights = heights[: len(epsilons)]
    area = res.curve_area(epsilons, heights)
    assert 0 <= area <= 1
    assert min(heights) - 1e-12 <= area <= max(heights) + 1e-12
    assert res.curve_area(epsilons * scale, heights) == pytest.approx(area, abs=1e-9)


@pytest.mark.parametrize(
    ("epsilons", "accuracy", "says"),
    [
        ([0], [1], "two or more"),
        ([0.1, 0.2], [1, 1], "rise strictly from 0"),
        ([0, 0.2, 0.2], [1, 1, 1], "rise strictly"),
        ([0, 1], [1], "one of each"),
        ([0, 1], [1, 1.5], r"\[0, 1\]"),
        ([0, 1], [1, float("nan")], r"\[0, 1\]"),
    ],
)
def test_area_refuses_what_is_no_curve(epsilons, accuracy, says):
    with pytest.raises(ValueError, match=says):
        res.curve_area(epsilons, accuracy)


def test_headline_starts_with_clean_and_has_one_curve_a_norm():
    linf, l2 = res.headline(all_records())
    assert (linf["norm"], linf["epsilons"]) == ("linf", [0, 0.1, 0.2])
    assert linf["accuracy"] == pytest.approx([5 / 6, 3 / 6, 1 / 6])
    assert linf["area"] == pytest.approx((4 / 6 + 2 / 6) / 2)
    assert (l2["norm"], l2["epsilons"]) == ("l2", [0, 0.5])


def test_headline_of_clean_alone_is_empty():
    assert res.headline([evaluated()[0].record]) == []


# Masking


def counted(attack, correct, epsilon=0.1, norm="linf", n=1000, **settings):
    return res.Record(attack, norm if epsilon else None, epsilon, "test", n, correct, settings=settings)


def test_masking_names_both_accuracies():
    records = [counted("pgd-20-ce", 700), counted("pgd-100-ce", 650), counted("fgsm", 720), counted("pgd-20-lm", 500)]
    (line,) = res.masking_warnings(records)
    for part in ("linf epsilon 0.1", "pgd-100-ce", "65.0%", "pgd-20-lm", "50.0%", "15.0 points", "gradient masking"):
        assert part in line
    assert "\n" not in line


@pytest.mark.parametrize(("other", "lines"), [(480, 0), (479, 1)])
def test_masking_begins_above_two_points(other, lines):
    assert len(res.masking_warnings([counted("pgd-20-ce", 500), counted("fgsm", other)])) == lines


def test_masking_compares_within_one_norm_and_radius_and_not_with_the_worst_case():
    strong_elsewhere = [counted("fgsm", 100, 0.2), counted("fgsm", 100, 0.1, "l2"), counted("worst-of", 100)]
    assert res.masking_warnings([counted("pgd-20-ce", 500), *strong_elsewhere]) == []


def test_masking_knows_cross_entropy_by_its_settings():
    restarts = counted("pgd-20-restarts", 500, loss="ce")
    assert len(res.masking_warnings([restarts, counted("pgd-20-lm", 400, loss="lm")])) == 1
    assert res.masking_warnings([counted("pgd-20-x", 500, loss="lm"), counted("fgsm", 400, loss="ce")]) == []


def test_accuracy_that_rises_with_epsilon_is_told_but_not_for_noise():
    records = [counted("clean", 900, 0)]
    records += [counted("fgsm", 300, 0.1), counted("fgsm", 400, 0.2), counted("fgsm", 405, 0.3)]
    records += [counted("uniform-noise", 300, 0.1), counted("uniform-noise", 800, 0.2)]
    (line,) = res.masking_warnings(records)
    assert "fgsm" in line
    assert "30.0% to 40.0%" in line
    assert "0.1 to 0.2" in line
    assert res.masking_warnings([counted("clean", 900, 0), counted("fgsm", 899, 0.1)]) == []


# Files


def write(folder, records=None, **change):
    clean, attacks, cases = evaluated()
    arrays = res.per_sample_arrays(np.arange(6) * 7, LABELS, clean, attacks, cases)
    arguments = dict(model=MODEL, data=FINGERPRINT, records=records or all_records(), per_sample=arrays) | change
    return res.write_results(folder, **arguments)


def test_what_is_written_is_read_again(tmp_path):
    path = write(tmp_path / "eval" / "final")
    assert sorted(p.name for p in path.parent.iterdir()) == ["per_sample.npz", "results.json"]
    results = res.read_results(path.parent)
    assert res.records_of(results) == all_records()
    assert results["headline"] == res.headline(all_records())
    assert results["warnings"] == res.masking_warnings(all_records())
    assert results["data"] == FINGERPRINT
    jsonschema.Draft202012Validator.check_schema(res.schema())
    jsonschema.validate(results, res.schema(), cls=jsonschema.Draft202012Validator)


def test_per_sample_arrays_are_keyed_by_norm_and_radius(tmp_path):
    write(tmp_path)
    _, _, cases = evaluated()
    arrays = res.read_per_sample(tmp_path)
    np.testing.assert_array_equal(arrays["id"], np.arange(6) * 7)
    np.testing.assert_array_equal(arrays["label"], LABELS)
    np.testing.assert_array_equal(arrays["clean_prediction"], [0, 0, 1, 1, 2, 0])
    assert arrays["attack_names"][arrays["winner/linf/0.1"][3]] == "pgd-20-lm"
    for case in cases:
        assert case.record.norm is not None
        for kind in ("prediction", "winner", "distance"):
            stored = arrays[res.sample_key(kind, case.record.norm, case.record.epsilon)]
            np.testing.assert_allclose(stored, getattr(case, kind), rtol=1e-7)


def test_no_number_is_a_key(tmp_path):
    text = write(tmp_path).read_text()

    def refuse_numbers(pairs):
        for key, _ in pairs:
            with pytest.raises(ValueError):
                float(key)
        return dict(pairs)

    json.loads(text, object_pairs_hook=refuse_numbers)
    for settings in ({0.1: "x"}, {"radii": {"0.1": 1}}, {"deep": [{"1e-3": 1}]}):
        with pytest.raises(ValueError, match=r"must be a name|does not fit the schema"):
            write(tmp_path / "other", records=[counted("fgsm", 500, **{"settings": settings})])
    assert not (tmp_path / "other").exists()


def test_numpy_settings_are_written_plain(tmp_path):
    record = counted("fgsm", 500, n=6 * 1000, steps=np.int64(20), epsilon_list=np.array([0.1, 0.2]), on=np.True_)
    path = write(tmp_path, records=[record], per_sample=None)
    assert res.read_results(path)["records"][0]["settings"] == {"steps": 20, "epsilon_list": [0.1, 0.2], "on": True}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(model={"lr": float("nan")}), "model.lr is nan"),
        (dict(model={"f": print}), "model.f is a builtin_function_or_method"),
        (dict(data={"name": "digits", "split": "test"}), "'count' is a required property"),
        (dict(records=[replace(counted("fgsm", 500), norm="l7")]), "records"),
        (dict(records=[counted("fgsm", 1500)]), "counts do not add up"),
        (dict(per_sample={"id": np.arange(5)}), "5 samples, the records counted"),
        (dict(per_sample={"id": np.arange(6), "label": np.arange(5)}), "'label' has 5 entries, must have 6"),
        (dict(per_sample={"id": np.arange(6), "label": np.array([None] * 6)}), "'label' holds objects"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, change, says):
    with pytest.raises(ValueError, match=says) as caught:
        write(tmp_path, **change)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def broken_results():
    def case(name, change):
        results = res.build_results(MODEL, FINGERPRINT, all_records())
        results = copy.deepcopy(results)
        change(results)
        return pytest.param(results, id=name)

    return [
        case("no records", lambda r: r.pop("records")),
        case("records empty", lambda r: r["records"].clear()),
        case("unknown field", lambda r: r.update(extra=1)),
        case("later version", lambda r: r.update(schema_version=2)),
        case("version as text", lambda r: r.update(schema_version="1")),
        case("clean with a norm", lambda r: r["records"][0].update(norm="linf")),
        case("clean with a radius", lambda r: r["records"][0].update(epsilon=0.1)),
        case("attack without norm", lambda r: r["records"][1].update(norm=None)),
        case("negative radius", lambda r: r["records"][1].update(epsilon=-0.1)),
        case("radius as text", lambda r: r["records"][1].update(epsilon="0.1")),
        case("count a fraction", lambda r: r["records"][1].update(correct=0.5)),
        case("more right than there are", lambda r: r["records"][1].update(correct=7)),
        case("classes do not add up", lambda r: r["records"][1]["per_class"][0].update(correct=0)),
        case("class without n", lambda r: r["records"][1]["per_class"][0].pop("n")),
        case("number as key", lambda r: r["records"][1]["settings"].update({"0.1": 1})),
        case("area above one", lambda r: r["headline"][0].update(area=1.5)),
        case("curve not from 0", lambda r: r["headline"][0]["epsilons"].__setitem__(0, 0.01)),
        case("curve of two lengths", lambda r: r["headline"][0]["accuracy"].append(0.5)),
        case("hash cut short", lambda r: r["data"].update(labels_sha256="abc")),
        case("warning of two lines", lambda r: r["warnings"].append("a\nb")),
    ]


@pytest.mark.parametrize("results", broken_results())
def test_broken_results_are_refused_on_reading(tmp_path, results):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    with pytest.raises(ValueError) as caught:
        res.read_results(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 1', "3", "not json"])
def test_truncated_or_foreign_file_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json"):
        res.read_results(tmp_path)


def test_a_failure_while_writing_keeps_the_old_file_whole(tmp_path):
    path = tmp_path / "results.json"
    res.write_atomically(path, lambda file: file.write(b"old"))

    def full_disk(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        res.write_atomically(path, full_disk)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    assert path.read_bytes() == b"old"


# Table


def test_table_is_rectangular_and_shows_the_worst_case():
    table = res.results_table(res.build_results(MODEL, FINGERPRINT, all_records()))
    assert {len(row) for row in table} == {5}
    assert all(isinstance(cell, str) and cell for row in table for cell in row)
    rows = {tuple(row[:2]): row[2:] for row in table}
    assert rows["clean", "0"] == ["83.3%", "50.0% (class 2)", "-"]
    assert rows["linf", "0.1"] == ["50.0%", "0.0% (class 2)", "pgd-20-ce 66.7%"]
    assert rows["linf", "area"][0] == "0.500"


def test_table_of_two_splits_keeps_them_apart():
    records = [replace(r, split=split) for split in ("validation", "test") for r in all_records()]
    table = res.results_table(res.build_results(MODEL, FINGERPRINT, records))
    assert [row[0] for row in table].count("linf (validation)") == 3
    assert [row[0] for row in table].count("clean (test)") == 1
