"""The correction of a run's logits: fitted on held-out attacked images, kept in the workdir, part of the predictor."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_advtrain import config as configs
from jax_advtrain.config_check import correction_radius
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import logit_correction, suite
from jax_advtrain.evaluation.attack_dataset import name_seed
from jax_advtrain.studies import opening
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display
from jax_advtrain.training.experiment import Experiment
from jax_advtrain.training.state import TrainState

_FOLDER_NAME = "corrections"
_TOLD = {"worst": "worst class", "mean": "mean"}


def correct_run(config: Any, folder: Path | str, display: Display | None = None) -> dict[str, Any]:
    """Fits a correction of a checkpoint's logits under attack, into corrections/<correction.name>.json.

    The file holds settings, class_names, correction (what is added to each class's logit), and tried: of no correction
    and of that of each round, the accuracies of worst class and mean where it was itself attacked.

    Returns:
      The file's content.

    Raises:
      ConfigError: no such run or checkpoint, no held-out samples, one logit a sample; the file holds another
        correction.
    """
    folder, display = Path(folder), display or Display()
    which, asked = config.eval.checkpoint, config.correction
    experiment, state = opening.load_run(config, folder, which, display)
    if experiment.is_binary:
        raise ConfigError("the run has one_logit; a correction needs one logit a class")
    data = opening.samples(experiment, "correction", config)
    norm, epsilon = correction_radius(config)
    settings = {
        **{name: value for name, value in configs.plain(asked).items() if name != "name"},
        **{"norm": norm, "epsilon": epsilon, "checkpoint": which, "seed": config.seed, "step": int(state.step)},
    }
    target = _place(folder, asked.name)
    there = read(folder, asked.name)
    if workdir.agreed(there is not None):
        there = there or read(folder, asked.name) or {}
        if differing := configs.differences(there["settings"], settings):
            raise ConfigError(
                f"{target} holds another correction: {'; '.join(differing)}. Give this one a file of its own: "
                "--config.correction.name=NAME"
            )
        display.say(f"{target} holds this correction already")
        _show(display, target, there)
        return there
    member = experiments.members(experiment, suite.texts(asked.attack))[0]
    with display.working(f"fitting on {len(data)} {asked.split} samples at {norm} {epsilon:g}"):
        tried = logit_correction.try_under_attack(
            experiment.logits_fn(state),
            data,
            member.build(norm),
            experiment.mesh,
            norm=norm,
            epsilon=epsilon,
            rounds=asked.rounds,
            seed=name_seed(config.seed, "correction"),
            batch_size=config.eval.batch_size,
            most_loss=asked.most_loss,
        )
    facts = {
        "settings": settings,
        "class_names": list(data.class_names),
        "correction": logit_correction.best_of(tried, asked.most_loss).correction.tolist(),
        "tried": [{"worst": one.worst, "mean": one.mean, "correction": one.correction.tolist()} for one in tried],
    }
    if workdir.is_writer():
        workdir.write_json(target, facts)
    _show(display, target, facts)
    return facts


def predictor(config: Any, folder: Path, experiment: Experiment, state: TrainState) -> jax.tree_util.Partial:
    """The model that is evaluated: a checkpoint's, with the correction that eval.correction names in its workdir.

    Raises:
      ConfigError: no such correction, or one of another checkpoint.
    """
    logits_fn, name = experiment.logits_fn(state), config.eval.correction
    facts = asked_for(config, folder)
    if facts is None:
        return logits_fn
    fitted, step = facts["settings"], int(state.step)
    if fitted["step"] != step:
        raise ConfigError(
            f"eval.correction {name!r} was fitted to the {fitted['checkpoint']} checkpoint of step {fitted['step']}; "
            f"the {config.eval.checkpoint} one is of step {step}: fit it one by --mode=correct "
            "--config.correction.name=NAME"
        )
    return logit_correction.corrected(logits_fn, np.asarray(facts["correction"], np.float32))


def asked_for(config: Any, folder: Path) -> dict[str, Any] | None:
    """The content of the correction that eval.correction names in a workdir; None where it names none.

    Raises:
      ConfigError: no such correction.
    """
    name = config.eval.correction
    if not name:
        return None
    facts = read(folder, name)
    if facts is None:
        there = sorted(path.stem for path in (folder / _FOLDER_NAME).glob("*.json"))
        have = f"it has {', '.join(there)}" if there else "it has none"
        raise ConfigError(
            f"eval.correction is {name!r}: {folder} has no such correction ({have}); fit it by --mode=correct"
        )
    return facts


def warnings(config: Any, folder: Path, split: str) -> list[str]:
    """A line where the correction that eval.correction names was fitted on the split that is attacked."""
    facts = asked_for(config, folder)
    if facts is None or facts["settings"].get("split") != split:
        return []
    return [
        f"correction {config.eval.correction!r} was fitted on this split, {split}, which flatters it, the worst class "
        "most: look at another split, or fit one on another (--mode=correct --config.correction.split=SPLIT)"
    ]


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """The content of the correction of that name in a workdir, or None.

    Raises:
      ConfigError: its file is damaged.
    """
    path = _place(folder, name)
    try:
        return workdir.read_json(path)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{path} is no correction: {error}; remove it") from None


def _place(folder: Path, name: str) -> Path:
    return folder / _FOLDER_NAME / f"{name}.json"


def _show(display: Display, target: Path, facts: dict[str, Any]) -> None:
    first = facts["tried"][0]
    chosen = next(one for one in facts["tried"] if one["correction"] == facts["correction"])
    told = ", ".join(
        f"{name} {value:+.3f}" for name, value in zip(facts["class_names"], facts["correction"], strict=True) if value
    )
    gained = ", ".join(f"{what} {first[key]:.3f} -> {chosen[key]:.3f}" for key, what in _TOLD.items())
    display.say(f"held out under attack: {gained}; {f'logits: {told}' if told else 'no correction is better'}")
    display.say(f"correction: {target}; evaluate it by --mode=evaluate --config.eval.correction={target.stem}")
