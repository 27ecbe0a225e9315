"""The command lines that make again what a workdir holds, and those that add what it lacks."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_advtrain.reports.page.run import Holdings
from jax_advtrain.training import workdir

_EVALUATION = (
    "split",
    "attacks",
    "epsilons_linf",
    "epsilons_l2",
    "epsilons_l1",
    "num_samples",
    "check_samples",
    "checkpoint",
)
_ANALYSIS = (
    "attacks",
    "norm",
    "epsilon",
    "split",
    "num_samples",
    "temperatures",
    "temperature_steps",
    "superclasses",
    "resamples",
)


def line(*arguments: object, module: str = "main") -> str:
    """A command line of this program, each argument quoted where the shell needs it."""
    return shlex.join(["python", "-m", f"jax_advtrain.{module}", *map(str, arguments)])


def flag(name: str, value: Any) -> str:
    """--config.NAME=VALUE, read back as the same value."""
    if isinstance(value, (list, tuple)):
        value = tuple(value)
    return f"--config.{name}={value}"


def again(folder: Path) -> Path:
    """Where a run that is made again would lie."""
    whole = folder if folder.name else folder.resolve()
    return whole.with_name(f"{whole.name}-again")


def of_run(held: Holdings, folder: Path) -> list[tuple[str, str]]:
    """Training with just this config, then each evaluation and study that training itself does not leave."""
    other = again(folder)
    found = [("Train, evaluate and draw with just these settings:",
              line(f"--config={folder / workdir.CONFIG_NAME}", f"--workdir={other}"))]  # fmt: skip
    usual = {name.strip() for name in str(held.config["eval"]["after_training"]).split(",")}
    for one in held.evaluations:
        if one.name not in usual and one.name != "homing" and not one.name.startswith("homing-"):
            found.append(
                (
                    f"The evaluation {one.name}:",
                    line(f"--workdir={other}", "--mode=evaluate", *_evaluation(held, one.name, one.settings)),
                )
            )
    for name, facts, _ in held.diagnoses:
        found.append(
            (
                f"The diagnosis in {name}:",
                line(f"--workdir={other}", "--mode=diagnose", *_diagnosis(held, folder / name, facts)),
            )
        )
    for name, facts, _ in held.surveys:
        settings = facts["settings"]
        flags = [flag(f"margins.{field}", value) for field, value in settings.items()
                 if field in held.config["margins"] and value != held.config["margins"][field]]  # fmt: skip
        found.append((f"The margins in eval/{name}:", line(f"--workdir={other}", "--mode=margins", f"--config.eval.name={name}",
                      flag("eval.checkpoint", settings["checkpoint"]), *flags)))  # fmt: skip
    for name, facts, _ in held.equilibria:
        settings = facts["settings"]
        flags = [
            flag(f"equilibrium.{field}", settings[field])
            for field in ("attack", "num_samples")
            if settings[field] != held.config["equilibrium"][field]
        ]
        found.append((f"The comparison of margins in eval/{name}:", line(f"--workdir={other}", "--mode=equilibrium", f"--config.eval.name={name}",
                      flag("eval.checkpoint", settings["checkpoint"]), *flags)))  # fmt: skip
    for name, facts in held.homings:
        flags = [f"--config.analysis.name={name.removeprefix('homing-')}"] if name != "homing" else []
        for left_out in [one["left_out"] for one in facts["classes"]][:20]:
            found.append(
                (
                    f"Training without {left_out}:",
                    line(f"--workdir={other}", "--mode=homing", *flags, flag("analysis.leave_out", left_out)),
                )
            )
    return found


def _evaluation(held: Holdings, name: str, settings: Mapping[str, Any]) -> list[str]:
    kept = held.config["eval"]
    fields = [field for field in _EVALUATION if field in settings and settings[field] != kept[field]]
    return [f"--config.eval.name={name}", *(flag(f"eval.{field}", settings[field]) for field in fields)]


def _diagnosis(held: Holdings, place: Path, facts: Mapping[str, Any]) -> list[str]:
    try:
        settings = workdir.read_json(place / "settings.json")
    except (OSError, ValueError):
        settings = {}
    kept = {**held.config["analysis"], "norm": held.norm, "epsilon": held.epsilon}
    flags = [
        flag(f"analysis.{field}", settings[field])
        for field in _ANALYSIS
        if field in settings and settings[field] != kept[field]
    ]
    name = place.name.removeprefix("diagnosis").removeprefix("-")
    checkpoint = facts["model"].get("checkpoint", held.config["eval"]["checkpoint"])
    flags += [flag("eval.checkpoint", checkpoint)] if checkpoint != held.config["eval"]["checkpoint"] else []
    return [*([f"--config.analysis.name={name}"] if name else []), *flags]


def missing(held: Holdings, folder: Path) -> list[tuple[str, str]]:
    """(what the page lacks, the command that adds it; "" where none does)."""

    def more(mode: str, *flags: str) -> str:
        last = (
            ()
            if held.evaluations and any(one.name == "best" for one in held.evaluations)
            else ("--config.eval.checkpoint=last",)
        )
        return line(f"--workdir={folder}", f"--mode={mode}", *flags, *last)

    found = []
    if not held.epochs:
        found.append(
            (
                "Curves of training: no epoch has ended",
                line(f"--config={folder / workdir.CONFIG_NAME}", f"--workdir={folder}"),
            )
        )
    if held.epochs and not any(one.get("margins") for one in held.epochs):
        found.append((f"Margins: the defense {held.config['defense']['name']} keeps none; ima, ame and mma do", ""))
    if not held.evaluations:
        found.append(("Attacks: nothing is evaluated", more("evaluate")))
    elif not any(one.settings.get("check_samples") for one in held.evaluations):
        found.append(
            (
                "Signs that the attacks fail on this model (check_model)",
                more("evaluate", "--config.eval.name=checked", "--config.eval.check_samples=200"),
            )
        )
    if not held.diagnoses:
        found.append(("Classes that are weak beyond noise, flows, confidence (diagnosis)", more("diagnose")))
    if not held.shows_images:
        found.append(("Images: left out, since config.report.images is False", ""))
    elif held.evaluations and held.boundary is None and not any(one.gallery is not None for one in held.evaluations):
        if not held.config["eval"]["figures"]:
            found.append(("Attacked images: config.eval.figures is 0", more("evaluate", "--config.eval.figures=8")))
        elif any((folder / "eval" / one.name / "images.png").exists() for one in held.evaluations):
            found.append(("Attacked images", more("evaluate")))
    if not held.surveys:
        found.append(("The distance of every test sample to the boundary", more("margins")))
    if not held.equilibria and any(one.get("margins") for one in held.epochs):
        found.append(("Whether the margins are the distances to the boundary", more("equilibrium")))
    return found


def of_grid(folder: Path) -> list[tuple[str, str]]:
    """The whole comparison, from what comparison.json keeps of its grid."""
    return [("Train, evaluate and compare with just these settings:",
             line(f"--config={folder / 'comparison.json'}", f"--workdir={again(folder)}", module="compare"))]  # fmt: skip


def of_comparison(places: Sequence[Path], folder: Path, kept: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The comparison of several runs' diagnoses."""
    settings = kept["settings"]
    fields = ("name", "attacks", "split", "num_samples", "resamples", "norm", "epsilon")
    flags = [flag(f"analysis.{field}", settings[field]) for field in fields if settings.get(field) not in ("", None)]
    runs = ",".join(map(str, places))
    return [("Diagnose these runs and compare them:",
             line("--mode=diagnose", f"--workdirs={runs}", f"--workdir={again(folder)}", *flags, flag("eval.checkpoint", settings["checkpoint"])))]  # fmt: skip
