"""The class-wise diagnosis of a run's checkpoint: attacked, written, drawn, told in words; never done twice, never
lost."""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_advtrain import config as configs
from jax_advtrain.config_check import analysed_radius
from jax_advtrain.data import Dataset, to_unit
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import classwise, suite
from jax_advtrain.evaluation.classwise import epochs, files, head, superclasses
from jax_advtrain.evaluation.records import WORST_OF
from jax_advtrain.models import functional
from jax_advtrain.reports import classwise as pictures
from jax_advtrain.reports import classwise_flow as maps
from jax_advtrain.studies import correcting, evaluations, opening, reporting
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display
from jax_advtrain.training.experiment import Experiment
from jax_advtrain.training.state import TrainState, evaluated_params

_SETTINGS_NAME = "settings.json"
_DECISIVE = (
    *("attacks", "split", "num_samples", "temperatures", "temperature_steps", "superclasses", "resamples"),
    *("norm", "epsilon", "checkpoint", "seed", "step", "correction"),
)


def diagnose_run(config: Any, folder: Path | str, display: Display | None = None) -> dict[str, Any]:
    """Diagnoses a workdir's checkpoint (eval.checkpoint) into <folder>/diagnosis, or diagnosis-<analysis.name>.

    Leaves classwise.json, arrays.npz, the tables as CSV, the figures. The same diagnosis is not made twice; that of an
    earlier step is kept beside.

    Returns:
      classwise.json's content.

    Raises:
      ConfigError: no such run or checkpoint; no samples; that folder holds another diagnosis.
    """
    folder, display = Path(folder), display or Display()
    which = config.eval.checkpoint
    experiment, state = opening.load_run(config, folder, which, display)
    data = opening.samples(experiment, "analysis", config)
    with opening.config_errors():
        groups = _superclasses(config, data)
        logits_fn = correcting.predictor(config, folder, experiment, state)
    settings, target = _settings(config, which, int(state.step)), place(config, folder)
    there = _standing(target)
    if workdir.agreed(there == settings):
        display.say(f"{target} holds this diagnosis already")
        facts = files.read(target)
    else:
        if there is not None:
            if there["step"] == settings["step"]:
                differing = "; ".join(configs.differences(there, settings))
                raise ConfigError(
                    f"{target} holds another diagnosis: {differing}. Give this one a folder of its own: "
                    "--config.analysis.name=NAME"
                )
            evaluations.move_aside(target, there["step"], display)
        facts = _diagnose(config, folder, target, settings, display, experiment, state, logits_fn, data, groups)
    if workdir.is_writer():
        _draw(config, target, facts, data)
    show(display, target, facts)
    reporting.report_run(config, folder, display)
    return facts


def place(config: Any, folder: Path) -> Path:
    """Where the diagnosis of a workdir lies."""
    return folder / (f"diagnosis-{config.analysis.name}" if config.analysis.name else "diagnosis")


def show(display: Display, target: Path, facts: dict[str, Any]) -> None:
    """The verdict, line by line, and where the rest is."""
    for line in facts["verdict"]:
        display.say(f"- {line}")
    display.say(f"all of it: {target / files.FACTS_NAME}, tables and figures beside it")


def _superclasses(config: Any, data: Dataset) -> superclasses.Superclasses | None:
    path = config.analysis.superclasses
    return superclasses.read(path, data.class_names) if path else superclasses.known(data.class_names)


def _settings(config: Any, which: str, step: int) -> dict[str, Any]:
    norm, epsilon = analysed_radius(config)
    kept = {**configs.plain(config.analysis), "norm": norm, "epsilon": epsilon, "correction": config.eval.correction}
    return {name: {**kept, "checkpoint": which, "seed": config.seed, "step": step}[name] for name in _DECISIVE}


def _standing(target: Path) -> dict[str, Any] | None:
    """The settings of the whole diagnosis that a folder holds, or None."""
    try:
        found = workdir.read_json(target / _SETTINGS_NAME)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(found, dict) or not (target / files.FACTS_NAME).exists():
        return None
    found = {"correction": "", **found}  # older ones knew of none
    return {name: found.get(name) for name in _DECISIVE}


def _diagnose(
    config, folder, target, settings, display, experiment: Experiment, state: TrainState, logits_fn, data, groups
):
    name = f".{target.name}.state-{zlib.crc32(json.dumps(settings, sort_keys=True).encode()):08x}"
    state_folder = target.with_name(name) if jax.process_count() == 1 else None
    kernel, why_not = _kernel(experiment, state, data)
    what = f"attacking {len(data)} {settings['split']} samples at {settings['norm']} {settings['epsilon']:g}"
    with display.working(what) as tell:
        found = classwise.diagnose(
            logits_fn,
            data,
            experiments.members(experiment, suite.texts(config.analysis.attacks)),
            norm=settings["norm"],
            epsilon=settings["epsilon"],
            mesh=experiment.mesh,
            temperatures=tuple(config.analysis.temperatures),
            temperature_steps=config.analysis.temperature_steps,
            kernel=kernel,
            why_no_kernel=why_not,
            epochs=epochs.from_log(workdir.read_metrics(folder), seed=config.seed),
            superclasses=groups,
            model={
                **configs.plain(config.model),
                "defense": configs.plain(config.defense),
                "checkpoint": settings["checkpoint"],
                "step": settings["step"],
                **({"correction": settings["correction"]} if settings["correction"] else {}),
            },
            split=settings["split"],
            resamples=config.analysis.resamples,
            seed=config.seed,
            batch_size=config.eval.batch_size,
            state_folder=state_folder,
            progress=tell,
        )
    warnings = [f"warning: {line}" for line in correcting.warnings(config, folder, settings["split"])]
    facts = {**found.facts, "verdict": [*found.facts["verdict"], *warnings]}
    if workdir.is_writer():
        workdir.write_json(target / _SETTINGS_NAME, settings)
        files.write(target, facts, found.arrays)
        for old in target.parent.glob(f".{target.name}.state-*"):
            shutil.rmtree(old, ignore_errors=True)
    return facts


def _kernel(experiment: Experiment, state: TrainState, data: Dataset) -> tuple[np.ndarray | None, str]:
    if experiment.is_binary:
        return None, head.ONE_LOGIT
    few = jnp.asarray(to_unit(data.images[:16]))
    graphdef, stats = experiment.recipe.graphdef, state.batch_stats

    def logits_of(params):
        return functional.logits_fn(graphdef, params, stats)(few)

    return head.find_kernel(logits_of, evaluated_params(state), data.num_classes), head.NO_HEAD


def _draw(config: Any, target: Path, facts: dict[str, Any], data: Dataset) -> None:
    """The figures that are not there yet."""
    title = f"{config.defense.name} on {data.name}, {facts['norm']} {facts['epsilon']:.4g}"
    arrays = files.read_arrays(target)
    labels, believed = arrays["label"], _steady_attack(config, facts)
    shares = classwise.row_shares(
        classwise.confusion(labels, arrays[f"prediction/{WORST_OF}"], len(facts["class_names"]))
    )
    rank = facts["consistency"]
    drawings = {
        "accuracy": lambda path: pictures.accuracies(facts, path, title=title),
        "flow": lambda path: maps.flow(
            facts, shares, path, attack=WORST_OF, title=f"{title}: where attacked images go"
        ),
        "gains": lambda path: pictures.gains(facts, path, title=f"{title}: where a stronger attack gains"),
        "consistency": lambda path: maps.correlations(
            rank["names"], rank["spearman"], rank["spearman_low"], rank["spearman_high"], path
        ),
        "confidence": lambda path: maps.flow(
            facts,
            arrays[f"distribution/{believed}"],
            path,
            attack=believed,
            what="mean probability",
            title=f"{title}: what the model believes under {believed}",
        ),
    }
    if facts["weight_norm"]["why_not"] is None:
        drawings["weight_norm"] = lambda path: pictures.weight_norms(facts, path, title=title)
    if facts["epochs"]["why_not"] is None:
        drawings["epochs"] = lambda path: pictures.epochs(
            facts, path, title=f"{config.defense.name} on {data.name}, validation"
        )
    if facts["superclasses"] is not None:
        drawings["superclasses"] = lambda path: maps.groups_flow(facts, path, attack=WORST_OF, title=title)
    if facts["temperature"] is not None:
        drawings["temperature"] = lambda path: maps.temperatures(facts, path)
    for name, draw in drawings.items():
        if not (target / f"{name}.png").exists():
            draw(target / f"{name}.png")


def _steady_attack(config: Any, facts: dict[str, Any]) -> str:
    """The strongest attack that does not stop at success: where one stops, the model's belief is that of a boundary."""
    members = suite.parse_all(suite.texts(config.analysis.attacks), where="analysis.attacks")
    steady = [
        name["attack"]
        for member, name in zip(members, facts["attacks"], strict=True)
        if not getattr(member.build(facts["norm"]), "stops_early", False)
    ]
    return steady[-1] if steady else facts["attacks"][-1]["attack"]
