"""Every figure is a whole PNG, also where there is next to nothing to draw, and needs neither pyplot nor a display."""

import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jax_advtrain.evaluation import results as res
from jax_advtrain.reports import boundary, curves, images, margin_survey, margins, style, training


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    # matplotlib and numpy warn where a figure is not what was meant: clipped layouts, empty slices, NaN.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pixels(path) -> np.ndarray:
    """The picture as uint8 (H, W, 3); fails unless it is a whole PNG of modest size, alone in its folder."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        assert 200 <= image.width <= 1800
        assert 200 <= image.height <= 1300
        array = np.asarray(image.convert("RGB"))
    assert array.std() > 0
    assert not list(path.parent.glob(".*.tmp"))
    return array


def has_colour(array: np.ndarray, colour: str, at_least: int = 20) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(array.astype(int) - wanted).max(axis=-1) <= 3).sum()) >= at_least


# Accuracy against radius


def records(norms=("linf", "l2"), radii=(0.1, 0.2), attacks=("fgsm", "pgd-20-ce", "pgd-20-lm", "uniform-noise")):
    def record(attack, norm, epsilon, correct):
        return res.Record(attack, norm, epsilon, "test", 100, correct, (res.ClassCount(100, correct),))

    made = [record("clean", None, 0.0, 97)]
    for norm in norms:
        for step, epsilon in enumerate(radii, start=1):
            made += [record(attack, norm, epsilon, 95 - 10 * step - i) for i, attack in enumerate(attacks)]
            made.append(record("worst-of", norm, epsilon, 90 - 10 * step - len(attacks)))
    return made


def build(made):
    return res.build_results({"name": "x"}, {"name": "digits", "split": "test", "count": 100, "version": None}, made)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(records(), id="two norms"),
        pytest.param(records(norms=("l2",)), id="one norm"),
        pytest.param(records(radii=(0.1,)), id="one radius"),
        pytest.param(records(attacks=()), id="worst case only"),
        pytest.param(records(attacks=tuple(f"a{i}" for i in range(12))), id="many attacks"),
        pytest.param(records()[1:], id="no clean"),
        pytest.param(records()[:1], id="clean only"),
        pytest.param([replace(r, correct=0, per_class=()) for r in records()], id="none right"),
    ],
)
def test_accuracy_vs_radius(tmp_path, made):
    path = curves.accuracy_vs_radius(build(made), tmp_path / "new" / "curves.png", title="a title")
    array = pixels(path)
    assert has_colour(array, style.GREEN) == any(r.attack == "clean" for r in made)
    assert has_colour(array, style.BLACK, 500) == any(r.attack == "worst-of" for r in made)


# Margins and training


def epoch_lines(epochs, with_margins=True, ceiling=0.3, equilibrium_from=None):
    rng = np.random.default_rng(0)
    lines = []
    for epoch in range(1, epochs + 1):
        values = np.minimum(rng.gamma(4, 0.01 * min(epoch, 10), 500), ceiling)
        counts, edges = np.histogram(values, 40, (0, ceiling))
        quantiles = {q: float(np.quantile(values, float(q))) for q in ("0.05", "0.25", "0.5", "0.75", "0.95")}
        line = dict(epoch=epoch, train=dict(loss=2 / epoch, clean_accuracy=0.9, attacked_accuracy=0.5))
        line["validation"] = dict(clean_accuracy=0.9, robust_accuracy=0.5 + 0.4 * epoch / epochs)
        if with_margins:
            line["margins"] = dict(
                mean=float(values.mean()), quantiles=quantiles, at_ceiling=0.1, expanding=0.5, shrinking=0.4,
                unchanged=0.1, abs_change=0.03 / epoch, growth=0.02 / epoch * (-1) ** epoch,
                histogram=counts.tolist(), bin_edges=edges.tolist(),
                equilibrium=equilibrium_from is not None and epoch >= equilibrium_from,
            )  # fmt: skip
        lines.append(line)
    return lines


@pytest.mark.parametrize("epochs", [1, 2, 5, 150])
def test_margin_figures_from_one_epoch_to_many(tmp_path, epochs):
    lines = epoch_lines(epochs)
    pixels(margins.margin_histogram(lines, tmp_path / "histogram.png", norm="l2"))
    pixels(margins.margin_trend(lines, tmp_path / "trend.png", delta=0.03, ceiling=0.3))


def test_equilibrium_is_marked_only_where_it_was_declared(tmp_path):
    arrived, not_arrived = (
        pixels(margins.margin_trend(epoch_lines(10, equilibrium_from=start), tmp_path / "trend.png", delta=0.03))
        for start in (7, None)
    )
    count = [(np.abs(a.astype(int) - (0, 158, 115)).max(axis=-1) <= 3).sum() for a in (arrived, not_arrived)]
    assert count[0] > count[1] + 300


@pytest.mark.parametrize("lines", [[], epoch_lines(3, with_margins=False), [{"epoch": 1, "margins": None}]])
def test_a_method_without_margins_says_so(tmp_path, lines):
    pixels(margins.margin_histogram(lines, tmp_path / "histogram.png"))
    pixels(margins.margin_trend(lines, tmp_path / "trend.png", delta=0.03))


def test_margins_where_nothing_was_hit_or_changed_or_counted(tmp_path):
    lines = epoch_lines(4)
    for line in lines:
        line["margins"] |= dict(abs_change=0.0, growth=0.0, expanding=0.0, shrinking=0.0, unchanged=1.0, mean=0.0)
        line["margins"] |= dict(histogram=[0] * 40, quantiles=dict.fromkeys(line["margins"]["quantiles"], 0.0))
    pixels(margins.margin_histogram(lines, tmp_path / "histogram.png"))
    pixels(margins.margin_trend(lines, tmp_path / "trend.png", delta=0.03, ceiling=0.3))


def test_margins_with_gaps_between_epochs_and_bins_that_changed(tmp_path):
    lines = epoch_lines(12)[::3] + [line | {"epoch": line["epoch"] + 12} for line in epoch_lines(3, ceiling=0.5)]
    pixels(margins.margin_histogram(lines, tmp_path / "histogram.png"))


@pytest.mark.parametrize("delta", [0, -0.1, float("nan")])
def test_trend_refuses_a_delta_that_is_no_step(tmp_path, delta):
    with pytest.raises(ValueError, match="delta must be above 0"):
        margins.margin_trend(epoch_lines(2), tmp_path / "trend.png", delta=delta)


@pytest.mark.parametrize("epochs", [0, 1, 5, 150])
def test_training_curves(tmp_path, epochs):
    array = pixels(training.training_curves(epoch_lines(epochs), tmp_path / "training.png"))
    assert has_colour(array, style.RED) == (epochs > 0)


def test_training_curves_of_a_method_without_attack_and_validation_now_and_then(tmp_path):
    lines = epoch_lines(6, with_margins=False)
    for i, line in enumerate(lines):
        del line["train"]["attacked_accuracy"]
        if i % 3:
            del line["validation"]
    array = pixels(training.training_curves(lines, tmp_path / "training.png"))
    assert not has_colour(array, style.ORANGE)
    assert has_colour(array, style.RED)


# Images


@pytest.mark.parametrize(("n", "channels"), [(1, 1), (8, 1), (12, 3)])
@pytest.mark.parametrize("names", [(), ("cat", "a rather long class name", "<b>&")])
def test_attack_grid(tmp_path, n, channels, names):
    rng = np.random.default_rng(0)
    clean = rng.uniform(size=(n, 8, 8, channels))
    labels = np.arange(n) % 3
    path = images.attack_grid(
        clean, np.clip(clean + rng.uniform(-0.1, 0.1, clean.shape), 0, 1), tmp_path / "images.png", labels=labels,
        clean_predictions=labels, attacked_predictions=(labels + 1) % 3, clean_confidence=np.full(n, 0.9),
        attacked_confidence=np.full(n, 0.6), class_names=names, title="pgd-20-ce",
    )  # fmt: skip
    pixels(path)


def test_attack_grid_of_an_attack_that_changed_nothing(tmp_path):
    clean = np.zeros((2, 8, 8, 1))
    told = dict(labels=[0, 0], clean_predictions=[0, 0], attacked_predictions=[0, 0])
    confident = dict(clean_confidence=[1.0, 1.0], attacked_confidence=[1.0, 1.0])
    pixels(images.attack_grid(clean, clean, tmp_path / "images.png", **told, **confident))


@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (2, 8, 8, 2), (2, 8, 8), (2, 2)])
def test_attack_grid_refuses_what_is_no_picture(tmp_path, shape):
    told = dict(labels=[0, 0], clean_predictions=[0, 0], attacked_predictions=[0, 0])
    confident = dict(clean_confidence=[1.0, 1.0], attacked_confidence=[1.0, 1.0])
    with pytest.raises(ValueError, match=r"must both be \(N, H, W, C\)"):
        images.attack_grid(np.zeros(shape), np.zeros(shape), tmp_path / "images.png", **told, **confident)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("largest", "factor"), [(0, 1), (1, 1), (0.3, 2), (0.1, 10), (8 / 255, 20), (0.5, 2), (0.6, 1)]
)
def test_amplification_closed_cases(largest, factor):
    assert images.amplification(np.array([0.0, -largest, largest / 2])) == factor


@given(st.floats(1e-5, 1))
def test_amplified_difference_fits_the_scale_and_uses_it(largest):
    stretched = images.amplification(np.array([largest])) * largest
    assert 0.39 <= stretched <= 1


# Boundary


def moons_panel(points, classes, **more):
    x, y, positions = boundary.plane(points, resolution=40)
    scores = np.stack([np.sin(3 * positions[:, 0] + k) + positions[:, 1] * k for k in range(classes)], axis=1)
    return x, y, dict(name="IMA", scores=scores.reshape(len(y), len(x), classes), **more)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("models", [1, 3])
def test_decision_regions(tmp_path, norm, classes, models):
    points = np.random.default_rng(0).uniform(size=(50, 2))
    labels = np.arange(50) % classes
    x, y, ima = moons_panel(points, classes, accuracy=0.98, margins=np.linspace(0, 0.1, 50))
    others = [dict(ima, name="standard", margins=None), dict(ima, name="PGD", margins=0.15, robust_accuracy=0.5)]
    pixels(boundary.decision_regions([ima, *others][:models], points, labels, x, y, tmp_path / "b.png", norm=norm))


def test_plane_lists_positions_as_scores_are_read():
    points = np.array([[0.0, 0.0], [1.0, 0.5]])
    x, y, positions = boundary.plane(points, resolution=7, pad=0.1)
    grid = positions.reshape(7, 7, 2)
    np.testing.assert_allclose(grid[:, 3, 0], x[3], rtol=1e-6)
    np.testing.assert_allclose(grid[2, :, 1], y[2], rtol=1e-6)
    assert (x[0], x[-1], y[0], y[-1]) == pytest.approx((-0.1, 1.1, -0.1, 0.6))


def test_a_region_is_painted_on_the_side_it_was_scored(tmp_path):
    points = np.array([[0.0, 0.0], [1.0, 1.0]])
    x, y, positions = boundary.plane(points, resolution=40)
    right_side = (positions[:, 0] > 0.5).astype(float)  # class 1 (reddish) to the right
    panel = dict(name="half", scores=np.stack([1 - right_side, right_side], axis=1).reshape(40, 40, 2))
    array = pixels(boundary.decision_regions([panel], points, np.array([0, 1]), x, y, tmp_path / "b.png")).astype(int)
    bluish = np.argwhere(array[..., 2] - array[..., 0] > 15)[:, 1]
    reddish = np.argwhere(array[..., 0] - array[..., 2] > 15)[:, 1]
    assert bluish.size > 1000
    assert np.quantile(bluish, 0.95) < np.quantile(reddish, 0.05)


def test_decision_regions_refuse_scores_of_another_grid(tmp_path):
    points = np.random.default_rng(0).uniform(size=(5, 2))
    x, y, panel = moons_panel(points, 2)
    with pytest.raises(ValueError, match=r"scores of 'IMA' are \(40, 40, 2\), not \(39, 40, C\)"):
        boundary.decision_regions([panel], points, np.zeros(5, int), x, y[:-1], tmp_path / "b.png")


# Margin survey


@pytest.mark.parametrize(
    ("values", "censored"),
    [
        ([0.0, 0.1, 0.2, 0.3], [False, False, False, True]),
        ([0.0, 0.0], [False, False]),
        ([0.3, 0.3], [True, True]),
        ([0.15], [False]),
        ([np.float32(0.3)], [False]),
    ],
)
def test_margin_survey(tmp_path, values, censored):
    path = margin_survey.margin_survey(
        np.array(values), np.array(censored), tmp_path / "survey.png", largest_radius=0.3
    )
    assert has_colour(pixels(path), style.ORANGE) == any(censored)


def test_accuracy_read_off_margins():
    read = margin_survey.accuracy_from_margins(np.array([0.0, 0.1, 0.2, np.inf]), np.array([0, 0.05, 0.1, 0.2, 9]))
    np.testing.assert_array_equal(read, [0.75, 0.75, 0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("values", "largest", "says"),
    [([0.4], 0.3, "must lie in"), ([np.nan], 0.3, "must lie in"), ([0.0], 0.0, "above 0"), ([], 0.3, "N >= 1")],
)
def test_margin_survey_refuses(tmp_path, values, largest, says):
    with pytest.raises(ValueError, match=says):
        margin_survey.margin_survey(
            np.array(values), np.zeros(len(values), bool), tmp_path / "survey.png", largest_radius=largest
        )


# The house


def test_no_pyplot_and_the_same_bytes_twice(tmp_path):
    lines = epoch_lines(3)
    first = training.training_curves(lines, tmp_path / "a.png").read_bytes()
    assert first == training.training_curves(lines, tmp_path / "b.png").read_bytes()
    code = (
        "import sys\n"
        "from jax_advtrain.reports import boundary, curves, images, margin_survey, margins, training\n"
        f"training.training_curves([{{'epoch': 1, 'train': {{'loss': 1.0}}}}], {str(tmp_path / 'c.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "", "HOME": str(tmp_path)})
    pixels(tmp_path / "c.png")
