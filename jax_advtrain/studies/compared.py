"""The comparison of a grid's methods: runs trained or found, evaluated alike, in one table and one figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_advtrain import config as configs
from jax_advtrain.config_check import validate
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import comparison, results
from jax_advtrain.evaluation.one_class import one_class_warnings
from jax_advtrain.reports import comparison as tables
from jax_advtrain.reports import comparison_figure
from jax_advtrain.reports.page.render import REPORT_NAME
from jax_advtrain.studies import evaluations, grid, opening, reporting, runs
from jax_advtrain.studies.grid import Run
from jax_advtrain.training import workdir
from jax_advtrain.training.checkpoints import BEST, LAST
from jax_advtrain.training.display import Display
from jax_advtrain.training.monitor import monitored_radius, stops_early

COMPARISON_NAME = "comparison.json"


def compare_grid(asked: Any, folder: Path | str, display: Display | None = None, *, trains: bool = True) -> Path:
    """Trains and evaluates what is not done yet, each run in <folder>/<method>/seed-<n>, then writes the comparison.

    Started again it goes on where it was: finished runs are found, half ones resumed. In the folder: comparison.json
    (all numbers), .csv, .md, .tex (the table), .png (the figure); written anew each time.

    Args:
      asked: of a grid's config file.
      trains: False: only the table, of runs that are finished.

    Returns:
      The path of comparison.json.

    Raises:
      ConfigError: one line, before any work: what `grid.runs` refuses, a run that cannot be trained or evaluated as
        asked, runs on other data, runs that are not finished where nothing is trained.
      loop.Diverged, loop.Stopped: of a run.
    """
    folder, display = Path(folder), display or Display()
    found = grid.runs(asked, folder)
    todo = _unfinished(found, asked)
    if todo and not trains:
        names = ", ".join(f"{run.method} seed {run.seed}" for run in todo[:5]) + (", ..." if len(todo) > 5 else "")
        raise ConfigError(
            f"{len(todo)} of {len(found)} runs in {folder} are not finished: {names}; without --mode=table they are"
        )
    _refuse_unlike(found, todo)
    display.say(f"{len(found)} runs, {len(found) - len(todo)} of them finished")
    for number, run in enumerate(todo, 1):
        display.say(f"run {number} of {len(todo)}: {run.method}, seed {run.seed}, in {run.folder}")
        runs.train_and_evaluate(run.config, run.folder, display)
        for config in grid.evaluations(run, asked):
            evaluations.evaluate_run(config, run.folder, display)
    return _write(asked, folder, display, found)


def _unfinished(found: Sequence[Run], asked: Any) -> list[Run]:
    """The runs that are not trained to the end or not evaluated; refuses what can be seen to be wrong without data."""
    num_devices = opening.all_devices().size
    with opening.config_errors():
        for run in found:
            try:
                for config in grid.evaluations(run, asked):
                    validate(config, num_devices)
            except ConfigError as error:
                raise ConfigError(f"method {run.method}: {error}") from error
            opening.refuse_other_run(run.config, run.folder)
            _refuse_other_training(run)
            for config in grid.evaluations(run, asked):
                target = run.folder / "eval" / config.eval.name
                differing = evaluations.other_settings(config, target, config.eval.checkpoint)
                if differing:
                    raise ConfigError(
                        f"{target} holds another evaluation: {'; '.join(differing)}. Give this one a name of its own: "
                        "--config.base.eval.name=NAME"
                    )
        return [run for run in found if not _is_finished(run, asked)]


def _refuse_other_training(run: Run) -> None:
    """A run's own command may change how long it trains and which checkpoint is kept as the best, so neither is a part
    of its identity; in a table the methods must be trained as the grid says."""
    lines, kept = workdir.read_metrics(run.folder), workdir.read_config(run.folder)
    if not lines or kept is None:
        return
    trained, where = lines[-1]["epoch"], f"method {run.method}: {run.folder}"
    if trained > run.config.epochs:
        raise ConfigError(
            f"{where} has trained {trained} epochs, the grid asks for {run.config.epochs}; it may only grow: give "
            f"--config.base.epochs={trained} or more (or the method's own epochs), or another --workdir"
        )
    there, here = _choosing(kept), _choosing(configs.plain(run.config))
    fields = there.keys() & here.keys()  # an older config lacks some
    if monitored_radius(configs.from_plain(kept)) == monitored_radius(run.config):
        fields -= {"monitor.norm", "monitor.epsilon"}  # None, which the defense fills in, is as good as its number
    differing = configs.differences({name: there[name] for name in fields}, {name: here[name] for name in fields})
    if differing:
        raise ConfigError(
            f"{where} was trained otherwise than the grid asks: {'; '.join(differing)}. Set that in the grid's base "
            "(or in the method), or give another --workdir"
        )


def _choosing(plain: dict[str, Any]) -> dict[str, Any]:
    """What of a plain config decides which epoch is the last and which the best, by dotted name."""
    found = {f"monitor.{name}": value for name, value in plain.get("monitor", {}).items()}
    found |= {f"checkpoint.{name}": value for name, value in plain.get("checkpoint", {}).items() if name == "best_by"}
    return found | {name: value for name, value in plain.items() if name == "patience"}


def _is_finished(run: Run, asked: Any) -> bool:
    lines, newest = workdir.read_metrics(run.folder), workdir.newest_step(run.folder, LAST)
    if not lines or lines[-1]["step"] != newest:
        return False
    by = run.config.checkpoint.best_by
    if lines[-1]["epoch"] < run.config.epochs and not stops_early(lines, run.config.patience, by):
        return False
    step = workdir.newest_step(run.folder, run.config.eval.checkpoint)
    return all(
        evaluations.is_done(config, run.folder / "eval" / config.eval.name, step)
        for config in grid.evaluations(run, asked)
    )


def _refuse_unlike(found: Sequence[Run], todo: Sequence[Run]) -> None:
    """Sets up what is to be trained, once a method, and looks whether all runs have the same data."""
    with opening.config_errors():
        kept = {f"{run.method}, seed {run.seed}": workdir.read_fingerprints(run.folder) for run in found}
    known = {name: data for name, data in kept.items() if data is not None}
    for run in {run.method: run for run in todo}.values():
        experiment = opening.set_up(run.config, run.folder)
        if run.config.eval.checkpoint == BEST and not len(experiment.splits.validation):
            raise ConfigError(
                "base.eval.checkpoint is 'best', which needs validation data: set base.data.validation_size, or "
                "base.eval.checkpoint to 'last'"
            )
        known[f"{run.method}, as asked for"] = opening.fingerprints(experiment)
    leader = next(iter(known), None)
    for name, data in known.items():
        differing = [] if leader is None else configs.differences(known[leader], data)
        if differing:
            raise ConfigError(
                f"the runs have other data: {name} and {leader} differ in {differing[0].partition(' ')[0]}; a "
                "comparison needs the same: give another --workdir"
            )


def _facts(run: Run, asked: Any) -> comparison.RunFacts:
    places = [run.folder / "eval" / config.eval.name for config in grid.evaluations(run, asked)]
    return comparison.RunFacts(
        run.seed,
        sum(line["seconds"] for line in workdir.read_metrics(run.folder)),
        tuple(comparison.Evaluated(results.read_results(p), results.read_per_sample(p)) for p in places),
    )


def _write(asked: Any, folder: Path, display: Display, found: Sequence[Run]) -> Path:
    methods: dict[str, list[comparison.RunFacts]] = {}
    with opening.config_errors():
        for run in found:
            methods.setdefault(run.method, []).append(_facts(run, asked))
        compared = comparison.compare_methods(methods)
    compared["grid"] = configs.plain(asked)
    compared["reference"] = asked.reference or next(iter(methods))
    path = folder / COMPARISON_NAME
    if workdir.is_writer():
        workdir.write_json(path, compared)
        tables.write_tables(compared, folder / "comparison")
        comparison_figure.comparison_figure(compared, folder / "comparison.png")
    display.table(f"{len(found)} runs, {compared['samples'][0]} samples", tables.rows_of_text(compared))
    for method, facts in methods.items():
        for one in facts:
            for line in one_class_warnings(results.records_of(one.evaluations[0].results)):
                display.say(f"warning: {method}, seed {one.seed}: {line}")
    for run in found:
        if not (run.folder / REPORT_NAME).exists():  # finished before runs had one
            reporting.report_run(run.config, run.folder, display)
    display.say(f"comparison: {', '.join(str(path.with_suffix(s)) for s in ('.md', '.csv', '.tex', '.json', '.png'))}")
    told = [(run.method, run.seed, run.folder) for run in found]
    reporting.report_grid(compared, asked.base, folder, told, display)
    return path
