"""The command lines that make again what a workdir holds, and those that add what it lacks."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_advtrain.errors import ConfigError
from jax_advtrain.reports.page.run import Holdings
from jax_advtrain.studies import correcting
from jax_advtrain.training import workdir

_EVALUATION = (
    *("split", "attacks", "epsilons_linf", "epsilons_l2", "epsilons_l1", "num_samples", "check_samples"),
    *("checkpoint", "correction"),
)
_FITTED = ("attack", "norm", "epsilon", "split", "num_samples", "rounds", "most_loss")
_ANALYSIS = (
    *("attacks", "norm", "epsilon", "split", "num_samples", "temperatures", "temperature_steps", "superclasses"),
    "resamples",
)
_MOST_HOMINGS = 20

Commands = list[tuple[str, str]]


def line(*arguments: object, module: str = "main") -> str:
    """A command line of this program, an argument a line, each quoted where the shell needs it."""
    words = [shlex.quote(str(argument)) for argument in arguments]
    return " \\\n  ".join([f"python -m jax_advtrain.{module}", *words])


def flag(name: str, value: Any) -> str:
    """--config.NAME=VALUE, read back as the same value."""
    return f"--config.{name}={tuple(value) if isinstance(value, list) else value}"


def _flags(section: str, asked: Mapping[str, Any], kept: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
    """Flags for the fields that were asked for otherwise than the workdir's config says."""
    return [
        flag(f"{section}.{field}", asked[field]) for field in fields if field in asked and asked[field] != kept[field]
    ]


def again(folder: Path) -> Path:
    """Where a run that is made again would lie."""
    whole = folder if folder.name else folder.resolve()
    return whole.with_name(f"{whole.name}-again")


def of_run(held: Holdings, folder: Path) -> Commands:
    """Training with just this config, then each evaluation and study that training itself does not leave, a correction
    before the first that uses it."""
    there, config = f"--workdir={again(folder)}", held.config
    found = [
        ("Train, evaluate and draw with just these settings:", line(f"--config={folder / workdir.CONFIG_NAME}", there))
    ]
    fitted: set[str] = set()

    def fit(name: str) -> Commands:
        if not name or name in fitted:
            return []
        fitted.add(name)
        return _correction(held, folder, name, there)

    # What training leaves, and what homing does.
    usual = {name.strip() for name in str(config["eval"]["after_training"]).split(",")} | {"homing"}
    for one in held.evaluations:
        if one.name not in usual and not one.name.startswith("homing-"):
            flags = _flags("eval", one.settings, config["eval"], _EVALUATION)
            command = line(there, "--mode=evaluate", f"--config.eval.name={one.name}", *flags)
            found += [*fit(one.settings.get("correction", "")), (f"The evaluation {one.name}:", command)]
    for name, facts, _ in held.diagnoses:
        command = line(there, "--mode=diagnose", *_diagnosis(held, folder / name, facts))
        found += [*fit(facts["model"].get("correction", "")), (f"The diagnosis in {name}:", command)]
    for mode, studies in (("margins", held.surveys), ("equilibrium", held.equilibria)):
        for name, facts, _ in studies:
            asked = facts["settings"]
            flags = [f"--config.eval.name={name}", *_flags("eval", asked, config["eval"], ("checkpoint",))]
            flags += _flags(mode, asked, config[mode], tuple(config[mode]))
            found.append((f"What lies in eval/{name}:", line(there, f"--mode={mode}", *flags)))
    for name, facts in held.homings:
        flags = [f"--config.analysis.name={name.removeprefix('homing-')}"] if name != "homing" else []
        flags += _flags("eval", facts, config["eval"], ("checkpoint",))
        for one in facts["classes"][:_MOST_HOMINGS]:
            command = line(there, "--mode=homing", *flags, flag("analysis.leave_out", one["left_out"]))
            found.append((f"Training without {one['left_out']}:", command))
    return found


def _correction(held: Holdings, folder: Path, name: str, there: str) -> Commands:
    """The correction of that name, as its file says; nothing where that is gone or damaged."""
    try:
        facts = correcting.read(folder, name)
        asked = {} if facts is None else facts["settings"]
    except (ConfigError, KeyError, TypeError, OSError):
        return []
    if not asked:
        return []
    own = _flags("eval", asked, held.config["eval"], ("checkpoint",))
    flags = [f"--config.correction.name={name}", *own, *_flags("correction", asked, held.config["correction"], _FITTED)]
    return [(f"The correction {name}:", line(there, "--mode=correct", *flags))]


def _diagnosis(held: Holdings, place: Path, facts: Mapping[str, Any]) -> list[str]:
    asked = {**workdir.read_json(place / "settings.json")} if (place / "settings.json").exists() else {}
    kept = {**held.config["analysis"], "norm": held.norm, "epsilon": held.epsilon}
    name = place.name.removeprefix("diagnosis").removeprefix("-")
    named = [f"--config.analysis.name={name}"] if name else []
    usual = {"checkpoint": held.config["eval"]["checkpoint"], "correction": ""}
    predictor = {field: facts["model"].get(field, value) for field, value in usual.items()}
    own = _flags("eval", predictor, held.config["eval"], tuple(usual))
    return [*named, *own, *_flags("analysis", asked, kept, _ANALYSIS)]


def missing(held: Holdings, folder: Path) -> Commands:
    """(what the page lacks, the command that adds it; "" where none does)."""
    has_best = any(one.get("validation") for one in held.epochs) or any(one.name == "best" for one in held.evaluations)

    def more(mode: str, *flags: str) -> str:
        return line(
            f"--workdir={folder}", f"--mode={mode}", *flags, *(() if has_best else ("--config.eval.checkpoint=last",))
        )

    keeps_margins = any(one.get("margins") for one in held.epochs)
    of_classes = held.config.get("dice_threshold") is None  # what asks for one class an image, segmentation refuses
    found = []
    if not held.epochs:
        train = line(f"--config={folder / workdir.CONFIG_NAME}", f"--workdir={folder}")
        found.append(("Curves of training: no epoch has ended.", train))
    elif not keeps_margins:
        found.append((f"Margins: the defense {held.config['defense']['name']} keeps none; ima, ame and mma do.", ""))
    if not held.evaluations:
        found.append(("Attacks: nothing is evaluated.", more("evaluate")))
    elif of_classes and not any(one.settings.get("check_samples") for one in held.evaluations):
        flags = ("--config.eval.name=checked", "--config.eval.check_samples=200")
        found.append(("A look for signs that the attacks fail on this model (check_model):", more("evaluate", *flags)))
    if of_classes and not held.diagnoses:
        found.append(("Which classes are weak beyond noise, flows, confidence (diagnosis):", more("diagnose")))
    if of_classes:
        found += _missing_images(held, folder, more)
    if not held.surveys:
        found.append(("How far every test sample is from the boundary:", more("margins")))
    if of_classes and keeps_margins and not held.equilibria:
        found.append(("Whether the margins are the distances to the boundary:", more("equilibrium")))
    return found


def _missing_images(held: Holdings, folder: Path, more) -> Commands:
    if not held.shows_images:
        return [("Images are left out: config.report.images is False.", "")]
    if any(one.gallery is not None for one in held.evaluations):
        return []
    # An older evaluation, which kept a picture and no pixels; points in the plane have neither.
    if any((folder / "eval" / one.name / "images.png").exists() for one in held.evaluations):
        return [("Attacked images:", more("evaluate"))]
    return []


def of_grid(folder: Path) -> Commands:
    """The whole comparison, from what comparison.json keeps of its grid."""
    command = line(f"--config={folder / 'comparison.json'}", f"--workdir={again(folder)}", module="compare")
    return [("Train, evaluate and compare with just these settings:", command)]


def of_comparison(places: Sequence[Path], folder: Path, kept: Mapping[str, Any]) -> Commands:
    """The comparison of several runs' diagnoses."""
    settings = kept["settings"]
    fields = ("name", "attacks", "split", "num_samples", "resamples", "norm", "epsilon")
    flags = [flag(f"analysis.{field}", settings[field]) for field in fields if settings.get(field) not in ("", None)]
    flags.append(flag("eval.checkpoint", settings["checkpoint"]))
    flags += [flag("eval.correction", settings["correction"])] if settings.get("correction") else []
    runs = f"--workdirs={','.join(map(str, places))}"
    command = line("--mode=diagnose", runs, f"--workdir={again(folder)}", *flags)
    return [("Diagnose these runs and compare them:", command)]
