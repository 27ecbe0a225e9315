"""Whole runs in a workdir: train and evaluate, evaluate again, survey margins. The command line, tests and notebooks
share these."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from jax_advtrain import config as configs
from jax_advtrain import devices
from jax_advtrain.config import ConfigError
from jax_advtrain.data import Dataset, to_unit
from jax_advtrain.evaluation import evaluate as evaluation
from jax_advtrain.evaluation import results, suite
from jax_advtrain.evaluation.attack_dataset import attack_dataset, first, name_seed
from jax_advtrain.evaluation.margin_survey import survey_margins
from jax_advtrain.reports import curves, images, margin_survey, margins, training
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import loop, workdir
from jax_advtrain.training.checkpoints import BEST, Checkpoints, Saved
from jax_advtrain.training.display import Display
from jax_advtrain.training.experiment import Experiment
from jax_advtrain.training.state import TrainState

_SETTINGS_NAME = "settings.json"


def train_and_evaluate(config: Any, folder: Path | str, display: Display | None = None) -> dict[str, dict[str, Any]]:
    """Trains to the end, or goes on where the workdir's run stopped; evaluates the last and the best; draws.

    Args:
      config: of a config file.
      folder: the workdir; a run of another config in it is refused.
      display: where messages go.

    Returns:
      {"last": results, "best": results} as in results.json; "best" only where there is validation data.

    Raises:
      ConfigError, ValueError: one line; nothing was written, nothing was lost.
      loop.Diverged, loop.Stopped: see there.
    """
    folder, display = Path(folder), display or Display()
    mesh = devices.make_mesh()
    configs.validate(config, mesh.size)
    refuse_other_run(config, folder)
    experiment = experiments.build(config, mesh)
    with workdir.locked(folder):
        refuse_other_run(config, folder)
        workdir.write_config(folder, configs.plain(config))
        done = {name: folder / "eval" / name for name in suite.texts(config.eval.after_training)}
        finished = all((path / results.RESULTS_NAME).exists() for path in done.values())
        trained = [line["epoch"] for line in workdir.read_metrics(folder)][-1:] >= [config.epochs]
        if finished and trained:
            display.say(f"this run is complete: {config.epochs} epochs are trained and evaluated")
        else:
            _train_and_evaluate(config, folder, display, experiment)
        found = {name: results.read_results(path) for name, path in done.items() if path.exists()}
        for name, one in found.items():
            show(display, f"{name} checkpoint, {one['records'][0]['n']} {one['records'][0]['split']} samples", one)
        display.say(f"results: {', '.join(str(done[name] / results.RESULTS_NAME) for name in found)}")
        display.say(f"plots:   {folder / 'plots'}, {', '.join(str(done[name]) for name in found)}")
        return found


def _train_and_evaluate(config: Any, folder: Path, display: Display, experiment: Experiment) -> None:
    saved = saved_facts(config, experiment)
    state = loop.train(experiment, config, folder, saved, display)
    draw_training(config, folder, experiment)
    for name in suite.texts(config.eval.after_training):
        if name == BEST:
            if not len(experiment.splits.validation):
                display.say("no validation data, so there is no best checkpoint")
                continue
            checkpoints = Checkpoints(folder, keep=config.checkpoint.keep)
            try:
                state, _ = loop.restore_or_start(experiment, saved, checkpoints, BEST, display)
            finally:
                checkpoints.close()
        evaluate_state(config, folder / "eval" / name, display, experiment, state, name)


def saved_facts(config: Any, experiment: Experiment) -> Saved:
    """What checkpoints carry beside the arrays."""
    return Saved(configs.identity(config), experiment.splits.train.fingerprint(), 0)


def refuse_other_run(config: Any, folder: Path) -> None:
    """Raises ConfigError where the workdir holds the run of another config, or the new one ends before it."""
    there = workdir.read_config(folder)
    if there is None:
        if (folder / "checkpoints").exists():
            raise ConfigError(f"{folder} holds checkpoints and no {workdir.CONFIG_NAME}; give another --workdir")
        return
    try:
        differing = configs.differences(configs.identity(there), configs.identity(config))
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(f"{folder / workdir.CONFIG_NAME} is not of this program; give another --workdir") from None
    if differing:
        raise ConfigError(f"{folder} holds a run of another config: {'; '.join(differing)}. Give another --workdir")
    if there["epochs"] > config.epochs:
        raise ConfigError(f"{folder} was run for {there['epochs']} epochs, epochs is {config.epochs}; it may only grow")


def load_run(config: Any, folder: Path, which: str, display: Display) -> tuple[Experiment, TrainState]:
    """A finished or running workdir's experiment and checkpoint.

    Raises:
      ConfigError: no run there, another run, or no checkpoint yet.
    """
    mesh = devices.make_mesh()
    configs.validate(config, mesh.size)
    if workdir.read_config(folder) is None:
        raise ConfigError(f"{folder} holds no run; train one with --mode=train, or give its --workdir")
    refuse_other_run(config, folder)
    experiment = experiments.build(config, mesh)
    checkpoints = Checkpoints(folder, keep=config.checkpoint.keep, read_only=True)
    try:
        if checkpoints.path(which) is None:
            raise ConfigError(f"{folder} has no {which} checkpoint yet")
        state, _ = loop.restore_or_start(experiment, saved_facts(config, experiment), checkpoints, which, display)
        return experiment, state
    finally:
        checkpoints.close()


def evaluate_run(config: Any, folder: Path | str, display: Display | None = None) -> dict[str, Any]:
    """Evaluates a workdir's checkpoint into eval/<eval.name> (default: the checkpoint's name).

    Raises:
      ConfigError: no such run, or that folder holds an evaluation with other settings.
    """
    folder, display = Path(folder), display or Display()
    experiment, state = load_run(config, folder, config.eval.checkpoint, display)
    target = folder / "eval" / (config.eval.name or config.eval.checkpoint)
    evaluate_state(config, target, display, experiment, state, config.eval.checkpoint)
    found = results.read_results(target)
    show(display, f"{target.name}, {found['records'][0]['n']} {config.eval.split} samples", found)
    display.say(f"results: {target / results.RESULTS_NAME}")
    return found


def evaluate_state(
    config: Any, target: Path, display: Display, experiment: Experiment, state: TrainState, which: str
) -> None:
    """Evaluates and draws into a folder, unless the same is there already."""
    step = int(state.step)
    settings = {
        **configs.plain(config.eval),
        "name": target.name,
        "checkpoint": which,
        "step": step,
        "seed": config.seed,
    }
    target.mkdir(parents=True, exist_ok=True)
    there = _read_settings(target)
    if (target / results.RESULTS_NAME).exists():
        if there == settings:
            display.say(f"{target} holds this evaluation already")
            return
        raise ConfigError(
            f"{target} holds another evaluation ({'; '.join(configs.differences(there or {}, settings))}); "
            "name this one with --config.eval.name=NAME"
        )
    data = first(getattr(experiment.splits, config.eval.split), config.eval.num_samples)
    if not len(data):
        raise ConfigError(f"the {config.eval.split} split is empty; set data.validation_size, or another eval.split")
    logits_fn = experiment.logits_fn(state)
    members = experiments.members(experiment, suite.texts(config.eval.attacks))
    epsilons = {norm: tuple(config.eval[f"epsilons_{norm}"]) for norm in ("linf", "l2")}
    with display.working(f"evaluating {which}") as tell:
        found = evaluation.evaluate(
            logits_fn,
            data,
            members,
            epsilons,
            experiment.mesh,
            split=config.eval.split,
            seed=config.seed,
            batch_size=config.eval.batch_size,
            progress=tell,
        )
    workdir.write_json(target / _SETTINGS_NAME, settings)
    results.write_results(
        target,
        model={
            **configs.plain(config.model),
            "defense": configs.plain(config.defense),
            "checkpoint": which,
            "step": step,
            "bad_gradients": {what: list(counts) for what, counts in found.bad_gradients.items()},
        },
        data=data.fingerprint(),
        records=found.records,
        per_sample=found.per_sample,
    )
    written = results.read_results(target)
    title = f"{config.defense.name} on {data.name}, {which} checkpoint"
    curves.accuracy_vs_radius(written, target / "accuracy_vs_radius.png", title=title)
    if data.images.ndim == 4 and config.eval.figures and members:
        draw_gallery(config, target, experiment, state, data)


def _read_settings(target: Path) -> Mapping[str, Any] | None:
    try:
        return workdir.read_json(target / _SETTINGS_NAME)
    except (FileNotFoundError, ValueError):
        return None


def draw_training(config: Any, folder: Path, experiment: Experiment) -> None:
    """The pictures of training: accuracies, and margins where the method has them."""
    lines, plots = workdir.read_metrics(folder), folder / "plots"
    plots.mkdir(exist_ok=True)
    title = f"{config.defense.name} on {experiment.splits.train.name}"
    training.training_curves(lines, plots / "training.png", title=title)
    if (settings := experiment.recipe.defense.margin_settings) is not None:
        delta, ceiling = settings
        norm = config.defense.norm
        margins.margin_histogram(lines, plots / "margin_histogram.png", norm=norm, title=title)
        margins.margin_trend(lines, plots / "margin_trend.png", delta=delta, norm=norm, ceiling=ceiling, title=title)


def draw_gallery(config: Any, target: Path, experiment: Experiment, state: TrainState, data: Dataset) -> None:
    """Clean, attacked and difference of a few images, under the monitor's strongest attack at its radius."""
    norm, epsilon = loop.monitored_radius(config)
    few, logits_fn = first(data, config.eval.figures), experiment.logits_fn(state)
    member = experiments.members(experiment, suite.texts(config.monitor.attacks))[-1]
    clean = attack_dataset(None, logits_fn, few, experiment.mesh)
    found = attack_dataset(
        member.build(norm),
        logits_fn,
        few,
        experiment.mesh,
        norm=norm,
        epsilon=epsilon,
        seed=name_seed(config.seed, "gallery"),
        keep_images=True,
    )
    assert found.images is not None
    images.attack_grid(
        np.asarray(to_unit(few.images)),
        found.images,
        target / "images.png",
        labels=few.labels.tolist(),
        clean_predictions=clean.prediction.tolist(),
        attacked_predictions=found.prediction.tolist(),
        clean_confidence=clean.confidence.tolist(),
        attacked_confidence=found.confidence.tolist(),
        class_names=few.class_names,
        title=f"{member.label}, {norm} {epsilon:g}",
        limit=config.eval.figures,
    )


def survey_run(config: Any, folder: Path | str, display: Display | None = None) -> Path:
    """Estimates the margin of every sample of a split into eval/<name>/margins.npz, and draws them.

    The file's arrays: id, label, margin, censored, clean_right, and radii.

    Raises:
      ConfigError: no such run; that file is there already.
    """
    folder, display = Path(folder), display or Display()
    settings = config.margins
    experiment, state = load_run(config, folder, config.eval.checkpoint, display)
    target = (
        folder / "eval" / (config.eval.name or f"margins-{config.eval.checkpoint}-{settings.split}-{settings.norm}")
    )
    path = target / "margins.npz"
    if path.exists():
        raise ConfigError(f"{path} is there already; name this survey with --config.eval.name=NAME")
    data = first(getattr(experiment.splits, settings.split), settings.num_samples)
    if not len(data):
        raise ConfigError(f"the {settings.split} split is empty; give another margins.split")
    with display.working("searching the boundary") as tell:
        found = survey_margins(
            experiment.logits_fn(state),
            data,
            tuple(settings.radii),
            experiment.mesh,
            norm=settings.norm,
            num_steps=settings.num_steps,
            loss="lmb" if experiment.is_binary else "slm",
            seed=config.seed,
            batch_size=config.eval.batch_size,
            progress=tell,
        )
    target.mkdir(parents=True, exist_ok=True)
    arrays = {"id": data.ids, "label": data.labels, **found._asdict(), "radii": np.asarray(settings.radii)}
    results.write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
    margin_survey.margin_survey(
        found.margin,
        found.censored,
        target / "margins.png",
        largest_radius=settings.radii[-1],
        norm=settings.norm,
        title=f"{config.defense.name} on {data.name}, {settings.split}",
    )
    right = found.clean_right
    median = float(np.median(found.margin[right])) if right.any() else 0.0
    display.say(
        f"{len(data)} {settings.split} samples, {settings.norm}: {right.mean():.1%} right; median margin of the right "
        f"ones {median:.4f}; {found.censored.mean():.1%} censored at {settings.radii[-1]:g}"
    )
    display.say(f"margins: {path}, {target / 'margins.png'}")
    return path


def show(display: Display, title: str, found: Mapping[str, Any]) -> None:
    """The short table and the warnings of an evaluation."""
    header, *rows = results.results_table(found)
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    if jax.process_index() == 0:
        display.console.print(table)
        for warning in found["warnings"]:
            display.say(f"warning: {warning}")
        for what, (zero, nonfinite) in found["model"].get("bad_gradients", {}).items():
            display.say(f"warning: {what}: zero gradient at {zero} samples, NaN or infinite at {nonfinite}")
