"""The margin of every sample of a split, kept and drawn in a folder of its own."""

from pathlib import Path
from typing import Any

import numpy as np

from jax_advtrain import config as configs
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import results, segmented
from jax_advtrain.evaluation.margin_survey import survey_margins
from jax_advtrain.reports import margin_survey
from jax_advtrain.studies import opening, reporting
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display

MARGINS_NAME = "margins.npz"
_FACTS_NAME = "margins.json"
_PICTURE_NAME = "margins.png"


def survey_run(config: Any, folder: Path | str, display: Display | None = None) -> Path:
    """Estimates the margin of every sample of a split into eval/<name>/margins.npz, and draws them.

    The name is eval.name, by default "margins-<checkpoint>-<split>-<norm>". The arrays, one entry a sample but for
    radii: id, label (of segmentation: case), margin, censored (no crossing up to the largest radius), clean_right; and
    radii. margins.json beside them says how they were found, and their short summary.

    Returns:
      The path of margins.npz.

    Raises:
      ConfigError: no such run; that folder holds a survey with other settings.
    """
    folder, display = Path(folder), display or Display()
    settings, which = config.margins, config.eval.checkpoint
    experiment, state = opening.load_run(config, folder, which, display)
    name = config.eval.name or f"margins-{which}-{settings.split}-{settings.norm}"
    target = folder / "eval" / name
    asked = {**configs.plain(settings), "checkpoint": which, "seed": config.seed, "step": int(state.step)}
    data = opening.samples(experiment, "margins", config)
    there = _standing(target)
    if workdir.agreed(there is not None):
        there = there or _standing(target) or {}
        if there["settings"] != asked:
            differing = configs.differences(there["settings"], asked)
            raise ConfigError(
                f"{target} holds another survey: {'; '.join(differing)}. Give this one a folder of its own: "
                "--config.eval.name=NAME"
            )
        display.say(f"{target} holds this survey already")
        _show(display, target, there)
        reporting.report_run(config, folder, display)
        return target / MARGINS_NAME
    with display.working(f"searching the boundary around {len(data)} {settings.split} samples") as tell:
        found = survey_margins(
            experiment.logits_fn(state),
            data,
            tuple(settings.radii),
            experiment.mesh,
            norm=settings.norm,
            num_steps=settings.num_steps,
            seed=config.seed,
            batch_size=config.eval.batch_size,
            progress=tell,
            task=experiment.attacked_task,
        )
    right = found.clean_right
    facts = {
        "settings": asked,
        "n": len(data),
        "right": int(right.sum()),
        "censored": int(found.censored.sum()),
        "median_margin": float(np.median(found.margin[right])) if right.any() else 0.0,
    }
    if workdir.is_writer():
        what = {"case": segmented.cases_of(data)} if data.is_dense else {"label": data.labels}
        arrays = {"id": data.ids, **what, **found._asdict(), "radii": np.asarray(settings.radii)}
        results.write_atomically(target / MARGINS_NAME, lambda file: np.savez_compressed(file, **arrays))
        margin_survey.margin_survey(
            found.margin,
            found.censored,
            target / _PICTURE_NAME,
            largest_radius=settings.radii[-1],
            norm=settings.norm,
            title=f"{config.defense.name} on {data.name}, {settings.split}",
        )
        workdir.write_json(target / _FACTS_NAME, facts)
    _show(display, target, facts)
    reporting.report_run(config, folder, display)
    return target / MARGINS_NAME


def _standing(target: Path) -> dict[str, Any] | None:
    """What was found by the whole survey that a folder holds, or None; its facts are written last."""
    try:
        return workdir.read_json(target / _FACTS_NAME)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _show(display: Display, target: Path, facts: dict[str, Any]) -> None:
    settings, n = facts["settings"], facts["n"]
    display.say(
        f"{n} {settings['split']} samples, {settings['norm']}: {facts['right'] / n:.1%} right; median margin of those "
        f"{facts['median_margin']:.4f}; {facts['censored'] / n:.1%} censored: no crossing up to "
        f"{settings['radii'][-1]:g}"
    )
    display.say(f"margins: {target / MARGINS_NAME}, {target / _PICTURE_NAME}")
