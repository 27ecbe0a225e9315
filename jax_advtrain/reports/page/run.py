"""The page of a run, from what its workdir holds. A section without data is absent, and one line says what adds it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_advtrain.reports.page import classes, evaluations, gallery, render, studies, training, verdict
from jax_advtrain.reports.page.verdict import Evaluation

Arrays = Mapping[str, np.ndarray]
_LONGEST = 300  # letters of a setting's value
_ORDER = ("data", "model", "defense", "classwise", "optimizer", "monitor", "checkpoint", "eval", "margins", "analysis")


class Holdings(NamedTuple):
    """What a workdir holds, read.

    Attributes:
      config: plain, of config.json. changed: dotted names of its fields that are not the defaults.
      ceiling: of the margins, or None. norm, epsilon: the radius of interest (the monitor's).
      epochs: lines of metrics.jsonl.
      diagnoses: (folder, classwise.json, arrays.npz). surveys, equilibria: (folder in eval/, facts, arrays).
      homings: (folder, classwise.json).
      boundary: plots/boundary.png, or None.
      unread: lines on files that could not be read.
      shows_images: False where pictures of samples are to be left out.
      commands: (what it does, command), in order: they make all of it again.
      missing: (what the page lacks, the command that adds it, or "").
    """

    folder: str
    config: Mapping[str, Any]
    changed: frozenset[str]
    data: Mapping[str, Any]
    norm: str
    epsilon: float
    ceiling: float | None
    epochs: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Evaluation]
    diagnoses: Sequence[tuple[str, Mapping[str, Any], Arrays]]
    surveys: Sequence[tuple[str, Mapping[str, Any], Arrays]]
    equilibria: Sequence[tuple[str, Mapping[str, Any], Arrays]]
    homings: Sequence[tuple[str, Mapping[str, Any]]]
    boundary: bytes | None
    unread: Sequence[str]
    shows_images: bool
    commands: Sequence[tuple[str, str]]
    missing: Sequence[tuple[str, str]]


def write_report(held: Holdings, path: Path) -> Path:
    """Draws the page into a file.

    Raises:
      ValueError: see `render.write_page`. OSError: no space, no permission.
    """
    return render.write_page("run.html", path, content(held))


def content(held: Holdings) -> dict[str, Any]:
    """What the template shows: plain values; "charts" by name."""
    main = verdict.main_of(held.evaluations)
    found = None if main is None else verdict.at_radius(main, held.norm, held.epsilon)
    warnings = list(held.unread)
    title = f"{_method(held.config)} on {held.config['data']['name']}"
    margin_norm = str(held.config["defense"].get("norm", held.norm))
    if main is not None and found is not None:
        lower = verdict.lower_elsewhere(main, found, held.evaluations, held.diagnoses)
        warnings = [*map(str, lower), *verdict.all_warnings(main, held.evaluations), *warnings]
        same = [main, *verdict.same_weights(main, held.evaluations)]
        is_checked = any(one.settings.get("check_samples") for one in same)
        sentences = verdict.sentences(title, main, found, lower, num_warnings=len(warnings), is_checked=is_checked)
        told = verdict.numbers(main, found)
    else:
        sentences, told = _without_evaluation(held, title), []
    parts: dict[str, Any] = {
        "title": title,
        "subtitle": _trained(held),
        "folder": held.folder,
        "sentences": sentences,
        "numbers": told,
        "warnings": warnings,
        "training": training.section(held.epochs),
        "margins": training.margins(held.epochs, margin_norm, held.ceiling),
        "evaluations": [] if main is None else evaluations.section(held.evaluations, main),
        "classes": [classes.of_diagnosis(*one) for one in held.diagnoses],
        "surveys": [studies.survey(*one) for one in held.surveys],
        "equilibria": [studies.equilibrium(*one, norm=margin_norm) for one in held.equilibria],
        "homings": [studies.homing(*one) for one in held.homings],
        "galleries": _galleries(held, main),
        "boundary": gallery.as_uri(held.boundary) if held.boundary and held.shows_images else None,
        "shows_images": held.shows_images,
        "settings": settings(held.config, held.changed),
        "data": held.data,
        "commands": held.commands,
        "missing": held.missing,
    }
    if not parts["classes"] and main is not None and found is not None:
        parts["classes"] = [one for one in [classes.of_evaluation(main, found)] if one is not None]
    return {**parts, "charts": _charts(parts)}


def _charts(parts: dict[str, Any]) -> dict[str, Any]:
    """Takes the specifications out of the sections: {name: specification}; the section keeps the name."""
    found: dict[str, Any] = {}

    def take(where: dict[str, Any] | None, field: str, name: str) -> None:
        if where is not None and where[field] is not None:
            found[name] = where[field]
            where[field] = {"name": name, "height": where[field]["usermeta"]["height"]}

    take(parts["training"], "loss", "loss")
    take(parts["training"], "accuracy", "accuracy")
    take(parts["training"], "dice", "dice")
    take(parts["margins"], "histogram", "margins")
    take(parts["margins"], "course", "margin-course")
    for i, one in enumerate(parts["evaluations"]):
        for curve in one["curves"]:
            take(curve, "chart", f"curve-{i}-{curve['norm']}")
        for curve in one["dice_curves"]:
            take(curve, "chart", f"dice-{i}-{curve['norm']}")
    for kind in ("classes", "surveys", "equilibria"):
        for i, one in enumerate(parts[kind]):
            take(one, "map" if kind == "classes" else "chart", f"{kind}-{i}")
    return found


def _method(config: Mapping[str, Any]) -> str:
    name = str(config["defense"]["name"])
    shown = name.upper().replace("_", "-") if name != "standard" else "Standard training"
    remedy = config.get("classwise", {}).get("name")
    return f"{shown} with {remedy}" if remedy else shown


def _trained(held: Holdings) -> str:
    done = held.epochs[-1]["epoch"] if held.epochs else 0
    return (
        f"{held.config['model']['name']}, {done} of {held.config['epochs']} epochs trained, seed {held.config['seed']}"
    )


def _without_evaluation(held: Holdings, title: str) -> tuple[str, str]:
    monitored = [one for one in held.epochs if one.get("validation")]
    if not monitored:
        return f"{title} is not evaluated yet.", "The command that does it stands at the end of this page."
    last = monitored[-1]["validation"]
    where = f" at {verdict.radius(last['norm'], last['epsilon'])}" if "epsilon" in last else ""
    first = (
        f"{title} is not evaluated yet; after epoch {monitored[-1]['epoch']} of training "
        f"{last['clean_accuracy']:.1%} of the validation samples were right when clean, and "
        f"{last['robust_accuracy']:.1%} under the monitor's attacks{where}."
    )
    return first, "These are no results: the monitor's attacks are weak, and its samples few."


def _galleries(held: Holdings, main: Evaluation | None) -> list[dict[str, Any]]:
    """That of the main evaluation, else the first that there is."""
    if not held.shows_images:
        return []
    ordered = sorted(held.evaluations, key=lambda one: main is not None and one.name != main.name)
    found = (gallery.section(one.gallery, one.name) for one in ordered if one.gallery is not None)
    return [one for one in [next((one for one in found if one is not None), None)] if one is not None]


def settings(config: Mapping[str, Any], changed: frozenset[str]) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """[(section, [(name in it, value, whether it is not the default)])], what says which run it is first.

    Args:
      config: plain. changed: dotted names.
    """
    ordered = sorted(config.items(), key=lambda item: _ORDER.index(item[0]) if item[0] in _ORDER else len(_ORDER))
    sections: dict[str, list[tuple[str, str, bool]]] = {"run": []}
    for name, value in ordered:
        section = name if isinstance(value, Mapping) else "run"
        for field, one in value.items() if isinstance(value, Mapping) else [(name, value)]:
            dotted = field if section == "run" else f"{name}.{field}"
            is_changed = any(other == dotted or other.startswith(f"{dotted}.") for other in changed)
            sections.setdefault(section, []).append((field, _short(one), is_changed))
    return [(name, rows) for name, rows in sections.items() if rows]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} letters)"
