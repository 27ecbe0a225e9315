"""A whole run in a workdir: train, evaluate, draw. The command line, tests and notebooks share this."""

import contextlib
from pathlib import Path
from typing import Any

from jax_advtrain import config as configs
from jax_advtrain.evaluation import results, suite
from jax_advtrain.reports import margins, training
from jax_advtrain.studies import evaluations, opening, reporting
from jax_advtrain.training import loop, workdir
from jax_advtrain.training.checkpoints import BEST, LAST
from jax_advtrain.training.display import Display
from jax_advtrain.training.experiment import Experiment
from jax_advtrain.training.monitor import stops_early


def train_and_evaluate(config: Any, folder: Path | str, display: Display | None = None) -> dict[str, dict[str, Any]]:
    """Trains to the end, or goes on where the workdir's run stopped; evaluates the last and the best; draws.

    A run that went on to more epochs is evaluated again; what was found at the earlier step is kept beside, in
    eval/last.step-<number>.

    Args:
      config: of a config file.
      folder: the workdir; a run of another config in it is refused.
      display: where messages go.

    Returns:
      {"last": results, "best": results} as in results.json; "best" only where there is validation data.

    Raises:
      ConfigError: one line; nothing was written, nothing was lost.
      loop.Diverged, loop.Stopped: see there.
    """
    folder, display = Path(folder), display or Display()
    experiment = opening.set_up(config, folder)
    names = _evaluated(config, experiment)
    done = {name: folder / "eval" / name for name in names}
    with contextlib.ExitStack() as stack:
        with opening.config_errors():
            stack.enter_context(workdir.locked(folder))
            opening.refuse_other_run(config, folder)
            opening.refuse_other_data(folder, experiment)
            by = config.checkpoint.best_by
            is_complete = workdir.agreed(_is_complete(folder, experiment, names, config.patience, by))
            if is_complete:
                for name, path in done.items():
                    evaluations.refuse_other_settings(config, path, name)
        kept = workdir.read_config(folder) if is_complete else None
        workdir.write_config(folder, configs.plain(config) if kept is None else configs.moved(kept, config))
        workdir.write_fingerprints(folder, opening.fingerprints(experiment))
        if is_complete:
            display.say(f"this run is complete: {config.epochs} epochs are trained and evaluated")
            found = {name: results.read_results(path) for name, path in done.items()}
        else:
            found = _train_and_evaluate(config, folder, display, experiment, names)
    shown: dict[int, str] = {}
    for name, one in found.items():
        if (step := one["model"]["step"]) in shown:
            display.say(f"{name}: the same checkpoint as {shown[step]}, step {step}")
        else:
            evaluations.show(display, name, one)
        shown.setdefault(step, name)
    if found:
        display.say(f"results: {', '.join(str(done[name] / results.RESULTS_NAME) for name in found)}")
    display.say(f"plots:   {', '.join(str(path) for path in (folder / 'plots', *(done[name] for name in found)))}")
    reporting.report_run(config, folder, display)
    return found


def _train_and_evaluate(config: Any, folder: Path, display: Display, experiment: Experiment, names: list[str]):
    saved = opening.saved_facts(config, experiment)
    if experiment.started_from is not None:
        display.say(f"starts from the weights of {experiment.started_from}")
    for line in opening.notices(experiment):
        display.say(f"warning: {line}")
    state = loop.train(experiment, config, folder, saved, display)
    if workdir.is_writer():
        draw_training(config, folder, experiment)
    found = {}
    for name in names:
        if name == BEST:
            best = opening.restored(config, folder, experiment, BEST, display, read_only=False)
            if best is None:
                display.say("no best checkpoint can be read, so it is not evaluated")
                continue
            state = best
        place, twin = folder / "eval" / name, folder / "eval" / LAST
        found[name] = evaluations.evaluate_state(
            config, place, display, experiment, state, name, replace=True, twin=twin if name == BEST else None
        )
    return found


def _evaluated(config: Any, experiment: Experiment) -> list[str]:
    """The checkpoints that are evaluated at the end; without validation data the last is the best there is."""
    names = suite.texts(config.eval.after_training)
    if not len(experiment.splits.validation):
        names = [LAST for _ in names]
    return list(dict.fromkeys(names))


def _is_complete(folder: Path, experiment: Experiment, names: list[str], patience: int | None, by: str) -> bool:
    """Whether the last epoch is trained, and the newest checkpoints are those that were evaluated."""
    newest = workdir.newest_step(folder, LAST)
    lines = [line for line in workdir.read_metrics(folder) if newest is not None and line["step"] <= newest]
    if newest != experiment.total_steps and not stops_early(lines, patience, by):
        return False
    evaluated = {name: evaluations.standing(folder / "eval" / name) for name in names}
    return all(one is not None and one["step"] == workdir.newest_step(folder, name) for name, one in evaluated.items())


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
