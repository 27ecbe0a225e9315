"""The evaluation of a checkpoint in a folder of its own: run, written, drawn, shown; never done twice, never lost."""

import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_advtrain import config as configs
from jax_advtrain.attacks.norms import NORMS
from jax_advtrain.data import Dataset, to_unit
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import evaluate as evaluation
from jax_advtrain.evaluation import results, suite
from jax_advtrain.evaluation.attack_dataset import first
from jax_advtrain.evaluation.check_model import check_model
from jax_advtrain.evaluation.check_model import lines as check_lines
from jax_advtrain.studies import correcting, evaluation_pictures, opening, reporting
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display
from jax_advtrain.training.experiment import Experiment
from jax_advtrain.training.monitor import monitored_radius
from jax_advtrain.training.state import TrainState

_SETTINGS_NAME = "settings.json"
# What of config.eval decides the numbers; batch size and figures do not.
_DECISIVE = (
    *("split", "attacks", "epsilons_linf", "epsilons_l2", "epsilons_l1", "num_samples", "check_samples"),
    "correction",
)


def evaluate_run(config: Any, folder: Path | str, display: Display | None = None) -> dict[str, Any]:
    """Evaluates a workdir's checkpoint into eval/<eval.name> (default: the names of checkpoint and correction).

    Returns:
      results.json's content.

    Raises:
      ConfigError: no such run or correction, or that folder holds an evaluation with other settings.
    """
    folder, display = Path(folder), display or Display()
    which = config.eval.checkpoint
    experiment, state = opening.load_run(config, folder, which, display)
    with opening.config_errors():
        logits_fn = correcting.predictor(config, folder, experiment, state)
        warnings = correcting.warnings(config, folder, config.eval.split)
    plain_name = f"{which}-{config.eval.correction}" if config.eval.correction else which
    target = folder / "eval" / (config.eval.name or plain_name)
    found = evaluate_state(config, target, display, experiment, state, which, logits_fn=logits_fn, warnings=warnings)
    show(display, target.name, found)
    display.say(f"results: {target / results.RESULTS_NAME}")
    display.say(f"plots:   {target}")
    reporting.report_run(config, folder, display)
    return found


def _settings(config: Any, which: str, step: int) -> dict[str, Any]:
    kept = configs.plain(config.eval)
    return {**{name: kept[name] for name in _DECISIVE}, "checkpoint": which, "seed": config.seed, "step": step}


def standing(target: Path) -> dict[str, Any] | None:
    """The settings of the whole evaluation that a folder holds, or None."""
    try:
        found = workdir.read_json(target / _SETTINGS_NAME)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(found, dict) or not (target / results.RESULTS_NAME).exists():
        return None
    found = {"correction": "", **found}  # older ones knew of none
    return {name: found.get(name) for name in (*_DECISIVE, "checkpoint", "seed", "step")}


def is_done(config: Any, target: Path, step: int) -> bool:
    """Whether the folder holds just the evaluation that the config asks for, of the checkpoint of that step."""
    return standing(target) == _settings(config, config.eval.checkpoint, step)


def other_settings(config: Any, target: Path, which: str) -> list[str]:
    """In what the evaluation that a folder holds differs from the one asked for, whatever its step."""
    there = standing(target)
    return [] if there is None else configs.differences(there, _settings(config, which, there["step"]))


def refuse_other_settings(config: Any, target: Path, which: str) -> None:
    """Raises ConfigError where the folder holds an evaluation with other settings, whatever its step."""
    differing = other_settings(config, target, which)
    if differing:
        raise ConfigError(
            f"{target} holds another evaluation: {'; '.join(differing)}. Give this one a folder of its own: "
            "--mode=evaluate --config.eval.name=NAME"
        )


def evaluate_state(
    config: Any,
    target: Path,
    display: Display,
    experiment: Experiment,
    state: TrainState,
    which: str,
    *,
    replace: bool = False,
    twin: Path | None = None,
    logits_fn: jax.tree_util.Partial | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluates and draws into a folder, unless the same is there already.

    An evaluation of an earlier step of the run (with `replace`: any other) is moved aside, to <folder>.step-<number>.
    Where the folder `twin` holds the same evaluation of the same step, under another checkpoint's name, nothing is
    attacked twice. `logits_fn` is the predictor where it is not the state's alone. `warnings` go
    into results.json, before those that follow from the attacks.

    Returns:
      results.json's content.

    Raises:
      ConfigError: the folder holds an evaluation of this step with other settings; there are no samples.
    """
    settings = _settings(config, which, int(state.step))
    data = opening.samples(experiment, "eval", config)
    logits_fn = experiment.logits_fn(state) if logits_fn is None else logits_fn
    there = standing(target)
    if workdir.agreed(there == settings):
        display.say(f"{target} holds this evaluation already")
        found = results.read_results(target)
    else:
        if there is not None:
            if there["step"] == settings["step"] and not replace:
                refuse_other_settings(config, target, which)
            move_aside(target, there["step"], display)
        if twin is not None and workdir.agreed(_is_same_but_for_name(standing(twin), settings)):
            display.say(f"the {which} checkpoint is that of {twin}, which is evaluated already")
            found = results.read_results(twin)
            measured = evaluation.Evaluation(
                results.records_of(found),
                results.read_per_sample(twin),
                found["model"]["bad_gradients"],
                results.read_per_case(twin),
            )
            checked = [line for line in found["warnings"] if line not in results.record_warnings(measured[0])]
        else:
            checked = [*warnings, *_check(config, display, logits_fn, data)]
            measured = _measure(config, target, settings, display, experiment, logits_fn, data, which)
        found = _write(config, target, data, settings, measured, checked)
        _forget_states(target)
    evaluation_pictures.draw(config, target, experiment, logits_fn, data, found)
    return found


def _is_same_but_for_name(there: dict[str, Any] | None, settings: dict[str, Any]) -> bool:
    return there is not None and {**there, "checkpoint": None} == {**settings, "checkpoint": None}


def move_aside(target: Path, step: int, display: Display) -> None:
    """Keeps what a folder holds of an earlier step, as <folder>.step-<number>."""
    kept = aside(target, step)
    if workdir.is_writer():
        os.rename(target, kept)
    display.say(f"the earlier evaluation is kept as {kept}")


def aside(target: Path, step: int | str) -> Path:
    """Where what a folder holds of an earlier step can be kept: a name beside it that is free."""
    free, number = target.with_name(f"{target.name}.step-{step}"), 0
    while free.exists():
        number += 1
        free = target.with_name(f"{target.name}.step-{step}.{number}")
    return free


def _measure(
    config: Any,
    target: Path,
    settings,
    display: Display,
    experiment: Experiment,
    logits_fn: jax.tree_util.Partial,
    data: Dataset,
    which,
):
    # Named by the settings: other ones start anew. Not on several hosts, which may not share the folder.
    name = f"{_state_prefix(target)}{zlib.crc32(json.dumps(settings, sort_keys=True).encode()):08x}"
    state_folder = target.with_name(name) if jax.process_count() == 1 else None
    with display.working(f"evaluating the {which} checkpoint on {len(data)} {config.eval.split} samples") as tell:
        return evaluation.evaluate(
            logits_fn,
            data,
            experiments.members(experiment, suite.texts(config.eval.attacks)),
            {norm: tuple(config.eval[f"epsilons_{norm}"]) for norm in NORMS},
            experiment.mesh,
            split=config.eval.split,
            seed=config.seed,
            batch_size=config.eval.batch_size,
            state_folder=state_folder,
            progress=tell,
            task=experiment.attacked_task,
        )


def _check(config: Any, display: Display, logits_fn: jax.tree_util.Partial, data: Dataset) -> list[str]:
    """What `check_model` says of the model at the radius of interest, as lines for results.json."""
    if not config.eval.check_samples:
        return []
    norm, epsilon = monitored_radius(config)
    few = first(data, config.eval.check_samples)
    with display.working(f"checking the model on {len(few)} samples at {norm} {epsilon:g}"):
        found = check_model(
            logits_fn,
            np.asarray(to_unit(few.images)),
            few.labels,
            norm=norm,
            epsilon=epsilon,
            seed=config.seed,
            batch_size=config.eval.batch_size,
        )
    return check_lines(found)


def _state_prefix(target: Path) -> str:
    return f".{target.name}.state-"


def _forget_states(target: Path) -> None:
    """Removes what interrupted evaluations into this folder had found so far."""
    if workdir.is_writer():
        for folder in target.parent.glob(f"{_state_prefix(target)}*"):
            shutil.rmtree(folder, ignore_errors=True)


def _write(
    config: Any, target: Path, data: Dataset, settings, measured: evaluation.Evaluation, checked: list[str]
) -> dict[str, Any]:
    records, per_sample, bad_gradients, per_case = measured
    model = {
        **configs.plain(config.model),
        "defense": configs.plain(config.defense),
        "checkpoint": settings["checkpoint"],
        "step": settings["step"],
        **({"correction": settings["correction"]} if settings["correction"] else {}),
        "class_names": list(data.class_names),
        "bad_gradients": {what: list(counts) for what, counts in bad_gradients.items()},
    }
    if workdir.is_writer():
        workdir.write_json(target / _SETTINGS_NAME, settings)
        results.write_results(
            target,
            model=model,
            data=data.fingerprint(),
            records=records,
            per_sample=per_sample,
            warnings=checked,
            per_case=per_case,
        )
    return results.build_results(model, data.fingerprint(), records, checked)


def show(display: Display, name: str, found: Mapping[str, Any]) -> None:
    """The short table and the warnings of an evaluation."""
    record = found["records"][0]
    title = f"{name}: {found['model']['checkpoint']} checkpoint, {record['n']} {record['split']} samples"
    display.table(title, results.results_table(found))
    for warning in found["warnings"]:
        display.say(f"warning: {warning}")
    for what, (zero, nonfinite) in found["model"].get("bad_gradients", {}).items():
        display.say(f"warning: {what}: zero gradient at {zero} samples, NaN or infinite at {nonfinite}")
