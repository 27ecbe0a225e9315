"""Homing: trains a run again without a class, and asks which images that were attacked into it still can be."""

import contextlib
import copy
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from jax_advtrain import config as configs
from jax_advtrain.attacks.registry import unknown_name
from jax_advtrain.config_check import analysed_radius
from jax_advtrain.data import Dataset, fields
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import results
from jax_advtrain.evaluation.attack_dataset import first
from jax_advtrain.evaluation.classwise import files, from_per_sample, home
from jax_advtrain.evaluation.records import WORST_OF
from jax_advtrain.reports import classwise_runs as pictures
from jax_advtrain.studies import evaluations, opening, reporting, runs
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display
from jax_advtrain.training.experiment import Experiment

ALL = "all"
# What the classes of one file have in common.
_SAME = ("norm", "epsilon", "split", "checkpoint", "step")


def home_run(config: Any, folder: Path | str, display: Display | None = None) -> dict[str, Any]:
    """Trains the workdir's config without analysis.leave_out (a class, or "all": each in turn), in
    <folder>/homing/<class>, attacks both models on the same images (analysis.homing_attacks) and compares them.

    Like every run, one that was stopped goes on with the same command; what is trained is not trained again. The two
    evaluations lie in eval/homing of either workdir, the answer in <folder>/homing/classwise.json, to which each class
    of the same checkpoint and step adds its part; that of another is kept beside, in homing.step-<number>.

    Returns:
      classwise.json's content.

    Raises:
      ConfigError: no such run or checkpoint, an unknown class, earlier homing with other settings.
      loop.Diverged, loop.Stopped: of the training.
    """
    folder, display = Path(folder), display or Display()
    which = config.eval.checkpoint
    if not config.analysis.leave_out:
        raise ConfigError("--mode=homing needs --config.analysis.leave_out=CLASS, or all")
    experiment, state = opening.load_run(config, folder, which, display)
    full_data = opening.samples(experiment, "analysis", config)
    names = full_data.class_names
    asked = _classes(config.analysis.leave_out, names)
    reduced = {name: _reduced(config, experiment, full_data, name) for name in asked}
    places = {name: folder / "homing" / _folder_name(name) for name in asked}
    name = f"homing-{config.analysis.name}" if config.analysis.name else "homing"
    for place, one in ((folder, config), *((places[name], reduced[name]) for name in asked)):
        _refuse_other(_evaluating(one, config, None), place / "eval" / name, which)
    for left_out in asked:
        _refuse_other_samples(
            experiment, opening.set_up(reduced[left_out], places[left_out]), full_data, config, left_out
        )
    norm, epsilon = analysed_radius(config)
    full_config = _evaluating(config, config, config.analysis.num_samples)
    target = folder / "eval" / name
    evaluations.evaluate_state(full_config, target, display, experiment, state, which)
    full = from_per_sample(results.read_per_sample(target), names, norm, epsilon)
    found: list[Any] = []
    for left_out in asked:
        display.say(f"without {left_out}: {places[left_out]}")
        runs.train_and_evaluate(reduced[left_out], places[left_out], display)
        other, its_state = opening.load_run(reduced[left_out], places[left_out], which, display)
        there = int((full_data.labels != names.index(left_out)).sum())
        other_config = _evaluating(reduced[left_out], config, there)
        its_target = places[left_out] / "eval" / name
        evaluations.evaluate_state(other_config, its_target, display, other, its_state, which)
        kept = [k for k in range(len(names)) if names[k] != left_out]
        without = from_per_sample(results.read_per_sample(its_target), [names[k] for k in kept], norm, epsilon)
        found.append(home.home(full, without, kept, WORST_OF))
        content = home.content(
            found, names, attack=WORST_OF, norm=norm, epsilon=epsilon, split=config.analysis.split, checkpoint=which,
            step=int(state.step),
        )  # fmt: skip
        content = _write(folder / name, content, display)
    for left_out in asked:
        display.say(f"- {next(line for line in content['verdict'] if line.startswith(f'{left_out}: '))}")
    display.say(f"all of it: {folder / name / files.FACTS_NAME}")
    reporting.report_run(config, folder, display)
    return content


def _classes(asked: str, names: tuple[str, ...]) -> list[str]:
    if asked == ALL and ALL not in names:
        return list(names)
    if asked not in names:
        few = [*names[:20], *((ALL,) if ALL not in names else ())]
        raise ConfigError(unknown_name("analysis.leave_out: class", asked, few if len(names) <= 20 else [*names, ALL]))
    return [asked]


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


def _reduced(config: Any, experiment: Experiment, full_data: Dataset, left_out: str) -> Any:
    """The same config without a class: the same training images but for its own, no evaluation at the end."""
    other = copy.deepcopy(config)
    splits = experiment.splits
    label = splits.train.class_names.index(left_out)
    chosen = fields.complete(config.data)  # a class may be a number there, and 0 is one
    with other.unlocked(), other.ignore_type():
        if chosen["classes"] is not None:
            other.data.classes = tuple(name for name in splits.train.class_names if name != left_out)
        else:
            other.data.exclude_classes = (*(chosen["exclude_classes"] or ()), left_out)
        other.data.exclude_how = "relabel"
        # The first so many of what is left: as many as the full run had of the other classes.
        if config.data.num_train is not None:
            carved = _is_carved(config, experiment)
            labels = [splits.train.labels, *([splits.validation.labels] if carved else [])]
            other.data.num_train = int((np.concatenate(labels) != label).sum())
        if config.data.num_test is not None:
            other.data.num_test = int((splits.test.labels != label).sum())
        other.eval.after_training = ""
        other.analysis.leave_out = ""
        other.beside = {}
    return other


def _refuse_other_samples(
    full: Experiment, reduced: Experiment, full_data: Dataset, config: Any, left_out: str
) -> None:
    """Both models are attacked, and trained, on the same images, but for those of the class. "The first so many" are
    others where the set lies class by class only with the class, or only without it."""

    def chosen(experiment: Experiment) -> set[int]:
        train, validation = experiment.splits.train, experiment.splits.validation
        name = train.class_names.index(left_out) if left_out in train.class_names else -1
        parts = [train, validation] if _is_carved(config, full) else [train]
        return {int(one) for part in parts for one in part.ids[part.labels != name]}

    wanted = full_data.ids[full_data.labels != full_data.class_names.index(left_out)]
    here = first(getattr(reduced.splits, config.analysis.split), len(wanted)).ids
    wrong = "analysis.num_samples and data.num_test" if set(wanted.tolist()) != set(here.tolist()) else ""
    if config.data.num_train is not None and chosen(full) != chosen(reduced):
        wrong = "data.num_train"
    if wrong:
        raise ConfigError(
            f"homing without {left_out}: the first so many samples are others without this class, for the set lies "
            f"partly class by class; set {wrong} to None"
        )


def _is_carved(config: Any, experiment: Experiment) -> bool:
    """Whether data.num_train counts the validation samples too."""
    splits = experiment.splits
    return config.data.num_train == len(splits.train) + len(splits.validation)


def _evaluating(own: Any, config: Any, num_samples: int | None) -> Any:
    """The config with which a model is evaluated for homing."""
    norm, epsilon = analysed_radius(config)
    other = copy.deepcopy(own)
    with other.unlocked(), other.ignore_type():
        for each in ("linf", "l2", "l1"):
            other.eval[f"epsilons_{each}"] = (epsilon,) if each == norm else ()
        other.eval.attacks = config.analysis.homing_attacks
        other.eval.split, other.eval.num_samples = config.analysis.split, num_samples
        other.eval.figures = other.eval.check_samples = 0
    return other


def _refuse_other(config: Any, target: Path, which: str) -> None:
    """Earlier homing with other attacks or samples, before any training; how many samples there are is told later."""
    there = evaluations.standing(target)
    if there is None:
        return
    asked = {
        **{name: configs.plain(config.eval)[name] for name in ("split", "attacks", "epsilons_linf", "epsilons_l2")},
        "checkpoint": which,
    }
    differing = configs.differences({name: there[name] for name in asked}, asked)
    if differing:
        raise ConfigError(
            f"{target} holds another homing: {'; '.join(differing)}. Give this one a name: --config.analysis.name=NAME"
        )


def _write(target: Path, content: dict[str, Any], display: Display) -> dict[str, Any]:
    """Adds the classes that were left out earlier, or moves these aside where they are of another model or radius."""
    done = [one["left_out"] for one in content["classes"]]
    with contextlib.suppress(FileNotFoundError):
        there = files.read(target)
        if all(there.get(field) == content[field] for field in _SAME):
            earlier = [one for one in there["classes"] if one["left_out"] not in done]
            asked = {field: content[field] for field in ("attack", *_SAME)}
            content = home.content([*content["classes"], *earlier], content["class_names"], **asked)
        else:
            _move_aside(target, there, display)
    if workdir.is_writer():
        files.write(target, content)
        pictures.homing(content, target / "homing.png")
    return content


def _move_aside(target: Path, there: dict[str, Any], display: Display) -> None:
    """Keeps an earlier answer in a folder beside; the runs that lie in the same folder stay, and are trained on."""
    aside = evaluations.aside(target, there.get("step", "unknown"))  # older ones did not say
    if workdir.is_writer():
        aside.mkdir()
        for name in (files.FACTS_NAME, "homing.png"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(target / name, aside / name)
    display.say(f"the earlier homing is kept as {aside}")
