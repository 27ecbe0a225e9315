"""Several workdirs' diagnoses side by side: seeds of one method together, methods against each other."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_advtrain import config as configs
from jax_advtrain.config_check import analysed_radius
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation.classwise import comparing, files, observations
from jax_advtrain.reports import classwise_flow as maps
from jax_advtrain.reports import classwise_runs as pictures
from jax_advtrain.studies import correcting, diagnosis, opening, reporting
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display
from jax_advtrain.training.monitor import monitored_radius

_SETTINGS_NAME = "settings.json"
# A place of its own for every run's data; where the command line changed one, it holds for all runs.
_FREE_DATA_FIELDS = ("data_dir", "path", "max_ram_gb")


def compare_runs(config: Any, folders: Sequence[Path], target: Path, display: Display | None = None) -> dict[str, Any]:
    """Diagnoses each workdir (what is diagnosed already is not diagnosed again) and compares them into a folder.

    Args:
      config: that of the first workdir, with what the command line changed; its section `analysis`, its
        eval.checkpoint and its eval.correction (of each workdir the one of that name) hold for all.
      folders: workdirs, two or more.
      target: where the comparison goes; one of other runs or settings in it is refused.

    Returns:
      The content of <target>/classwise.json.

    Raises:
      ConfigError: before any attack: no such run or correction, runs over different classes, samples or radii, one
        seed of a method twice, another comparison there.
    """
    display = display or Display()
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError("--workdirs needs two folders or more, each once, with commas between them")
    of_runs = [_config_of(config, folders[0], folder) for folder in folders]
    norm, epsilon = _one_radius(of_runs, folders)
    methods = _methods(of_runs)
    _refuse_twins(of_runs, folders, methods)
    _refuse_others(of_runs, folders)
    settings = {
        **{
            name: configs.plain(config.analysis)[name]
            for name in ("name", "attacks", "split", "num_samples", "resamples")
        },
        "norm": norm,
        "epsilon": epsilon,
        "checkpoint": config.eval.checkpoint,
        "correction": config.eval.correction,
        "runs": [str(folder.resolve()) for folder in folders],
    }
    there = _standing(target)
    if there is not None and there["settings"] != settings:
        differing = "; ".join(configs.differences(there["settings"], settings))
        raise ConfigError(f"{target} holds another comparison: {differing}. Give --workdir=DIR for this one")
    if workdir.read_config(target) is not None:
        raise ConfigError(f"{target} is the workdir of a run; give another --workdir for the comparison")
    runs, steps, told = [], [], []
    for one, folder, name, method in zip(of_runs, folders, _names(folders), methods, strict=True):
        told.append((method, name, folder))
        display.say(f"{name}: {folder}")
        facts = diagnosis.diagnose_run(one, folder, display)
        arrays = files.read_arrays(diagnosis.place(one, folder))
        steps.append(facts["model"]["step"])
        attacks = [part["attack"] for part in facts["attacks"]]
        seen = observations.observed(
            arrays["label"],
            arrays["clean_prediction"],
            {attack: arrays[f"prediction/{attack}"] for attack in attacks},
            facts["class_names"],
            ids=arrays["id"],
        )
        runs.append(comparing.Run(name, method, seen))
    with opening.config_errors():
        content = comparing.compare(
            runs, norm=norm, epsilon=epsilon, split=config.analysis.split, resamples=config.analysis.resamples,
            seed=config.seed,
        )  # fmt: skip
    content["verdict"] += [
        f"warning: {name}: {line}"
        for one, folder, name in zip(of_runs, folders, _names(folders), strict=True)
        for line in correcting.warnings(one, folder, config.analysis.split)
    ]
    if there is not None and there.get("steps") == steps:
        display.say(f"{target} holds this comparison already")
    elif workdir.is_writer():
        if there is not None:
            diagnosis.evaluations.move_aside(target, max(there.get("steps") or [0]), display)
        workdir.write_json(target / _SETTINGS_NAME, {"settings": settings, "steps": steps})
        files.write(target, content)
    if workdir.is_writer():
        _draw(target, content)
    for line in content["verdict"]:
        display.say(f"- {line}")
    display.say(f"all of it: {target / files.FACTS_NAME}, figures beside it")
    reporting.report_comparison_of_runs(content, config, target, told, display)
    return content


def _standing(target: Path) -> dict[str, Any] | None:
    try:
        found = workdir.read_json(target / _SETTINGS_NAME)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(found, dict) or not (target / files.FACTS_NAME).exists():
        return None
    return {**found, "settings": {"correction": "", **(found.get("settings") or {})}}  # older ones knew of none


def _config_of(config: Any, first: Path, folder: Path) -> Any:
    """A run's own config, with the analysis, the checkpoint and the correction that are asked for."""
    with opening.config_errors():
        kept, of_first = workdir.read_config(folder), workdir.read_config(first)
        if kept is None or of_first is None:
            raise ConfigError(f"{folder} holds no run; give workdirs of trained runs")
        own: Any = configs.from_plain(kept)
    with own.unlocked():
        own.analysis = copy.deepcopy(config.analysis)
        for field in ("checkpoint", "correction", "batch_size"):
            own.eval[field] = config.eval[field]
        for field in _FREE_DATA_FIELDS:
            if config.data[field] != of_first["data"].get(field):
                own.data[field] = config.data[field]
    return own


def _one_radius(of_runs: Sequence[Any], folders: Sequence[Path]) -> tuple[str, float]:
    radii = [analysed_radius(one) for one in of_runs]
    if len(set(radii)) > 1:
        told = ", ".join(
            f"{folder}: {norm} {epsilon:g}" for folder, (norm, epsilon) in zip(folders, radii, strict=True)
        )
        raise ConfigError(
            f"the runs' radii differ ({told}); give one for all: --config.analysis.norm=NORM "
            "--config.analysis.epsilon=RADIUS"
        )
    return radii[0]


def _refuse_others(of_runs: Sequence[Any], folders: Sequence[Path]) -> None:
    """Runs over different classes or samples, or without the correction, before anything is attacked."""
    seen = []
    for one, folder in zip(of_runs, folders, strict=True):
        correcting.asked_for(one, folder)
        experiment = opening.set_up(one, folder, is_training=False)
        data = opening.samples(experiment, "analysis", one)
        seen.append(observations.observed(data.labels, data.labels, {}, data.class_names, ids=data.ids))
        with opening.config_errors():
            comparing.refuse_others(seen[0], seen[-1], (str(folders[0]), str(folder)))


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; where two have the same, with the folder above."""
    names = [folder.resolve().name for folder in folders]
    return [
        name if names.count(name) == 1 else f"{folder.resolve().parent.name}/{name}"
        for name, folder in zip(names, folders, strict=True)
    ]


def _refuse_twins(of_runs: Sequence[Any], folders: Sequence[Path], methods: Sequence[str]) -> None:
    """One seed twice is no second draw of training: its spread over seeds would be too small."""
    first: dict[tuple[str, int], Path] = {}
    for one, folder, method in zip(of_runs, folders, methods, strict=True):
        other = first.setdefault((method, one.seed), folder)
        if other is not folder:
            raise ConfigError(f"{other} and {folder} are both seed {one.seed} of {method}; give each seed once")


def _methods(of_runs: Sequence[Any]) -> list[str]:
    """What tells methods apart, all but the seed: the defense, and of several with one name the fields that differ."""
    identities = [_flat({**_method(one), "seed": None}) for one in of_runs]
    names = [str(one["defense.name"]) for one in identities]
    methods = []
    for own, name in zip(identities, names, strict=True):
        alike = [other for other, its in zip(identities, names, strict=True) if its == name]
        fields = [field for field in own if any(other.get(field) != own[field] for other in alike)]
        told = ", ".join(f"{field.removeprefix('defense.')}={own[field]}" for field in fields)
        methods.append(f"{name} ({told})" if told else name)
    return methods


def _method(config: Any) -> dict[str, Any]:
    """A run's identity, and what else decides which of its epochs is the last and which the best."""
    whole = configs.plain(config)
    norm, epsilon = monitored_radius(config)
    return {
        **configs.identity(config),
        **{name: whole[name] for name in ("epochs", "patience")},
        "checkpoint": {"best_by": whole["checkpoint"]["best_by"]},
        "monitor": {**whole["monitor"], "norm": norm, "epsilon": epsilon},
    }


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, part in value.items():
        found |= _flat(part, f"{prefix}{name}.") if isinstance(part, dict) else {prefix + name: part}
    return found


def _draw(target: Path, content: dict[str, Any]) -> None:
    rank = content["consistency"]
    drawings = {
        "accuracy": lambda path: pictures.methods(content, path),
        "consistency": lambda path: maps.correlations(
            rank["names"], rank["spearman"], rank["spearman_low"], rank["spearman_high"], path
        ),
    }
    for name, draw in drawings.items():
        if not (target / f"{name}.png").exists():
            draw(target / f"{name}.png")
