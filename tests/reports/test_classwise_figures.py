"""The class-wise figures are whole at 10, 100 and 1,000 classes, and where there is next to nothing to draw."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_advtrain.evaluation.classwise import superclasses
from jax_advtrain.reports import classwise, classwise_flow, classwise_runs, style

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
from classwise_facts import made_up

TEN = tuple(["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
HUNDRED = tuple(sorted(name for members in superclasses._CIFAR100.values() for name in members))
THOUSAND = tuple(f"synset number {k}" for k in range(1000))


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    # matplotlib and numpy warn where a figure is not what was meant: clipped layouts, empty slices, NaN.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        assert 200 <= image.width <= 1800 and 200 <= image.height <= 1300
        return np.asarray(image.convert("RGB"))


def has_colour(array: np.ndarray, colour: str, within: int = 3) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(array.astype(int) - wanted).max(axis=-1) <= within).sum()) >= 20


def draw_all(facts, shares, folder):
    """{name: pixels} of every figure of a diagnosis."""
    rank = facts["consistency"]
    drawn = [
        classwise.accuracies(facts, folder / "accuracy.png"),
        classwise.gains(facts, folder / "gains.png"),
        classwise.weight_norms(facts, folder / "weight_norm.png"),
        classwise.epochs(facts, folder / "epochs.png"),
        classwise_flow.flow(facts, shares, folder / "flow.png", attack="worst-of"),
        classwise_flow.correlations(
            rank["names"], rank["spearman"], rank["spearman_low"], rank["spearman_high"], folder / "consistency.png"
        ),
    ]
    if facts["temperature"] is not None:
        drawn.append(classwise_flow.temperatures(facts, folder / "temperature.png"))
    if facts["superclasses"] is not None:
        drawn.append(classwise_flow.groups_flow(facts, folder / "superclasses.png", attack="worst-of"))
    return {path.stem: pixels(path) for path in drawn}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(TEN, id="10"),
        pytest.param(HUNDRED, id="100", marks=pytest.mark.slow),
        pytest.param(THOUSAND, id="1000", marks=pytest.mark.slow),
    ],
)
def test_a_diagnosis(names, tmp_path):
    drawn = draw_all(*made_up(names), tmp_path)
    assert has_colour(drawn["accuracy"], style.RED) and has_colour(drawn["accuracy"], style.BLUE)
    assert has_colour(drawn["gains"], style.RED) and has_colour(drawn["gains"], style.SKY)
    if len(names) < 1000:
        assert has_colour(drawn["flow"], "#D9D9D9")  # the diagonal
        assert has_colour(drawn["flow"], style.ORANGE, within=30)  # the borders of super-classes
    assert ("superclasses" in drawn) == (len(names) < 1000)


def test_next_to_nothing(tmp_path):
    facts, shares = made_up(("a", "b", "c"), 2, empty=(1,), with_all=False)
    facts["gains"] = []
    draw_all(facts, shares, tmp_path)


def over_seeds(*values):
    return {"mean": None if None in values else float(np.mean(values)), "deviation": None, "seeds": list(values)}


def test_methods_beside_each_other(tmp_path):
    groups = [
        {"name": name, "runs": ["a", "b"], "per_class": [over_seeds(0.2 * i, 0.2 * i + 0.1) for i in range(3)]
         + [over_seeds(None, None)]} for name in ("ima", "pgd_at")
    ]  # fmt: skip
    content = {"class_names": ["a", "b", "c", "none"], "groups": groups, "norm": "linf", "epsilon": 0.1}
    drawn = pixels(classwise_runs.methods(content, tmp_path / "methods.png"))
    assert has_colour(drawn, style.BLUE) and has_colour(drawn, style.RED)


def test_homing(tmp_path):
    one = {"left_out": "cat", "attacked_into": 9, "share": 0.5, "low": 0.2, "high": 0.8, "others_share": 0.1}
    drawn = pixels(classwise_runs.homing({"classes": [one, {**one, "left_out": "dog", "others_share": None}]},
                                         tmp_path / "homing.png"))  # fmt: skip
    assert has_colour(drawn, style.RED) and has_colour(drawn, style.SKY)
    classwise_runs.homing({"classes": [{**one, "attacked_into": 0}]}, tmp_path / "none.png")
