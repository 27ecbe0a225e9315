"""Attacks from short texts: their labels, their settings, and what is refused."""

import json
import re
from pathlib import Path

import pytest

from jax_advtrain import segmentation, tasks
from jax_advtrain.evaluation import results, suite


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("fgsm", "fgsm-ce"),
        ("pgd", "pgd-20-ce"),
        ("ifgsm", "ifgsm-10-ce"),
        ("pgd:num_steps=100:loss=lm:restarts=5", "pgd-100-lm-x5"),
        (" pgd : temperature=0.2 ", "pgd-20-ce-T0.2"),
        ("pgd:restarts=1", "pgd-20-ce"),
        ("noise", "uniform-noise"),
        ("noise:distribution=gaussian", "gaussian-noise"),
        ("apgd:loss=dlr:targets=9", "apgd-100-dlr-t9"),
        ("fab:targets=all:num_steps=20", "fab-20-tall"),
        ("autoattack", "autoattack"),
        ("autoattack:version=plus", "autoattack-plus"),
        ("pgd:temperatures=[1, 0.2]", "pgd-20-ce-T1+0.2"),
        ("carlini_wagner", "carlini_wagner"),
        ("square:rounded=255:until_success=True", "square-5000-rounded255-until-success"),
    ],
)
def test_labels(text, label):
    assert suite.parse(text).label == label
    schema = json.loads(Path(results.__file__).with_name("results.schema.json").read_text())
    assert re.fullmatch(schema["$defs"]["record"]["properties"]["attack"]["pattern"], label)


def test_the_attack_is_what_the_text_says():
    member = suite.parse("pgd:num_steps=7:alpha=4.0:restarts=3")
    attack = member.build("l2")
    assert attack.passes == 3 * (2 * 7 + 1)
    assert member.settings == {"name": "pgd", "num_steps": 7, "alpha": 4.0, "restarts": 3, "loss": "ce"}


def test_losses_for_one_logit():
    labels = [member.label for member in suite.parse_all(["pgd", "pgd:loss=lm", "fgsm"], task=tasks.BINARY)]
    assert labels == ["pgd-20-bce", "pgd-20-lmb", "fgsm-bce"]


def test_attacks_of_segmentation_ascend_what_training_descends():
    task = segmentation.segmentation(0.7)
    members = suite.parse_all(["pgd:restarts=2", "fgsm", "mim:num_steps=7", "noise"], task=task)
    labels = ["pgd-20-task-x2", "fgsm-task", "mim-7-task", "uniform-noise"]
    assert [member.label for member in members] == labels
    attack = members[1].build("l2")
    assert attack.loss.function is task.loss and attack.is_right == task.is_right and attack.score is task.score
    assert members[0].settings["loss"] == "task"
    for text, said in (
        ("fab", "is of classifiers; segmentation, where the lowest Dice counts, has pgd"),
        ("apgd", "is of classifiers"),
        ("pgd:loss=lm", "the loss is 'task'"),
        ("pgd:targets=3", "sets targets"),
        ("pgd:until_success=True", "sets until_success"),
    ):
        with pytest.raises(ValueError, match=said):
            suite.parse(text, task=task)


def test_attacks_that_differ_in_hidden_settings_only_are_told_apart():
    labels = [member.label for member in suite.parse_all(["pgd:alpha=4.0", "pgd:alpha=2.5:start=clean", "pgd:loss=lm"])]
    assert labels == ["pgd-20-ce-alpha=4.0", "pgd-20-ce-alpha=2.5-start=clean", "pgd-20-lm"]


def test_texts():
    assert suite.texts(" fgsm,pgd:num_steps=3 ,, ") == ("fgsm", "pgd:num_steps=3")
    assert suite.texts("") == ()
    assert suite.texts("pgd:temperatures=[1, 0.2], fgsm") == ("pgd:temperatures=[1, 0.2]", "fgsm")


def test_attacks_know_their_norms():
    assert suite.parse("carlini_wagner").norms == ("l2",)
    assert suite.parse("deepfool").norms == ("linf", "l2")
    assert suite.parse("autoattack").norms == ("linf", "l2", "l1")
    for text in ("fmn", "apgd", "square", "fab:targets=3"):
        member = suite.parse(text)
        assert all(member.build(norm).passes > 0 for norm in member.norms)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pdg", "attack 'pdg' is not known (did you mean 'pgd'?)"),
        ("pgd:steps", "has 'steps'; write field=value"),
        ("pgd:num_steps=", "write field=value"),
        ("pgd:nm_steps=3", "(did you mean 'num_steps'?)"),
        ("pgd:num_steps=3:num_steps=4", "sets num_steps twice"),
        ("pgd:num_steps=0", "num_steps is 0; give a whole number from 1"),
        ("pgd:num_steps=many", "num_steps is 'many'"),
        ("pgd:alpha=nan", "alpha is 'nan'"),
        ("pgd:alpha=-1", "alpha is -1"),
        ("pgd:loss=hinge", "'hinge' is not known"),
        ("pgd:restarts=0", "num_restarts is 0"),
        ("pgd:temperature=0", "temperature is 0"),
        ("pgd:temperature=hot", "temperature is 'hot'"),
        ("noise:temperature=2", "takes no temperature"),
        ("noise:distribution=cauchy", "distribution is 'cauchy'"),
        ("pgd:norm=l2", "sets norm; the radii of each norm are fields of the config"),
        ("pgd:epsilon=0.1", "sets epsilon"),
        ("", "attack '' is not known"),
    ],
)
def test_bad_texts(text, expected):
    with pytest.raises(ValueError) as caught:
        suite.parse(text, where="monitor.attacks")
    assert expected in str(caught.value) and str(caught.value).startswith("monitor.attacks: ")


def test_the_same_attack_twice():
    with pytest.raises(ValueError, match="holds pgd-20-lm twice"):
        suite.parse_all(["pgd:loss=lm", "fgsm", "pgd:loss=lm:num_steps=20"])
