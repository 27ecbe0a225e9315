"""The equilibrium that IMA claims, looked at: training's margins beside distances found by a minimum-norm attack."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jax_advtrain import config as configs
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import results, suite
from jax_advtrain.evaluation.attack_dataset import attack_dataset, first, name_seed
from jax_advtrain.evaluation.equilibrium import agreement
from jax_advtrain.reports.equilibrium import margins_against_distances
from jax_advtrain.studies import opening, reporting
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display

ARRAYS_NAME, _FACTS_NAME, _PICTURE_NAME = "equilibrium.npz", "equilibrium.json", "equilibrium.png"


def compare_margins(config: Any, folder: Path | str, display: Display | None = None) -> dict[str, Any]:
    """Compares a checkpoint's margins with the distances found around its first training samples.

    Into eval/<name>, by default "equilibrium-<checkpoint>-<attack>": equilibrium.npz with id, label, margin, distance,
    clean_right, found, one entry a sample; equilibrium.json with the numbers; a scatter plot. The distance is that of
    an adversarial image, an upper bound of the true one. The images are those of the data set, not augmented.

    Returns:
      {"settings", and the fields of `evaluation.equilibrium.Agreement`}.

    Raises:
      ConfigError: no such run, a method that keeps no margins, streamed data, an attack that does not know the norm;
        the folder holds another comparison.
    """
    folder, display = Path(folder), display or Display()
    which, settings = config.eval.checkpoint, config.equilibrium
    experiment, state = opening.load_run(config, folder, which, display)
    margins, train = experiment.margins(state), experiment.splits.train
    if margins is None:
        raise ConfigError(f"defense {config.defense.name!r} keeps no margins; ima, ame and mma do")
    if train.is_streamed:
        raise ConfigError("equilibrium needs training images in memory; these are streamed: raise data.max_ram_gb")
    norm = config.defense.norm
    member = suite.parse(settings.attack, task=experiment.attacked_task, where="equilibrium.attack")
    if norm not in member.norms:
        raise ConfigError(f"equilibrium.attack {member.label} knows the norms {', '.join(member.norms)}, not {norm!r}")
    asked = {**configs.plain(settings), "checkpoint": which, "seed": config.seed, "step": int(state.step)}
    target = folder / "eval" / (config.eval.name or f"equilibrium-{which}-{member.label}")
    there = _standing(target)
    if workdir.agreed(there is not None):
        there = there or _standing(target) or {}
        if differing := configs.differences(there["settings"], asked):
            raise ConfigError(
                f"{target} holds another comparison: {'; '.join(differing)}. Give this one a folder of its own: "
                "--config.eval.name=NAME"
            )
        display.say(f"{target} holds this comparison already")
        _show(display, target, there)
        reporting.report_run(config, folder, display)
        return there
    data = first(train, settings.num_samples)
    margins, logits_fn = margins[np.isin(train.ids, data.ids)], experiment.logits_fn(state)
    with display.working(f"searching the nearest boundary around {len(data)} training samples") as tell:
        clean = attack_dataset(None, logits_fn, data, experiment.mesh, batch_size=config.eval.batch_size)
        attacked = attack_dataset(
            member.build(norm),
            logits_fn,
            data,
            experiment.mesh,
            norm=norm,
            epsilon=_diameter(norm, math.prod(data.image_shape)),
            seed=name_seed(config.seed, "equilibrium"),
            batch_size=config.eval.batch_size,
            active_set=False,
            progress=lambda done: tell(f"{member.label} {norm}", done / len(data)),
        )
    arrays = {"margin": margins, "distance": attacked.distance, "clean_right": clean.is_right,
              "found": ~attacked.is_right}  # fmt: skip
    ceiling = config.defense.get("eps_max", config.defense.get("d_max"))
    delta = config.defense.get("delta", 0.0)
    compared = agreement(
        margins,
        attacked.distance,
        clean_right=clean.is_right,
        found=~attacked.is_right,
        delta=delta,
        ceiling=ceiling,
    )
    facts = {"settings": asked, **compared._asdict()}
    if workdir.is_writer():
        kept: dict[str, Any] = {"id": data.ids, "label": data.labels, **arrays}
        results.write_atomically(target / ARRAYS_NAME, lambda file: np.savez_compressed(file, **kept))
        margins_against_distances(
            **arrays,
            path=target / _PICTURE_NAME,
            agreement=compared,
            ceiling=ceiling,
            norm=norm,
            title=f"{config.defense.name} on {train.name}, {which} checkpoint, {member.label}",
        )
        workdir.write_json(target / _FACTS_NAME, facts)
    _show(display, target, facts)
    reporting.report_run(config, folder, display)
    return facts


def _diameter(norm: str, size: int) -> float:
    """The farthest that two images in [0, 1] can lie apart: a radius that holds no search back."""
    return {"linf": 1.0, "l2": math.sqrt(size)}.get(norm, float(size))


def _standing(target: Path) -> dict[str, Any] | None:
    """What a whole comparison found, or None; its facts are written last."""
    try:
        return workdir.read_json(target / _FACTS_NAME)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _show(display: Display, target: Path, facts: dict[str, Any]) -> None:
    def told(value: float | None) -> str:
        return "not defined" if value is None else f"{value:.3f}"

    display.say(
        f"{facts['compared']} of {facts['n']} training samples ({facts['wrong']} wrong when clean, {facts['unfound']} "
        f"without an adversarial image): rank correlation {told(facts['spearman'])}; below the ceiling, where "
        f"{facts['compared'] - facts['at_ceiling']} lie, {told(facts['spearman_below'])}, median distance / margin "
        f"{told(facts['median_ratio'])}, within one delta {told(facts['within_delta'])}"
    )
    display.say(f"equilibrium: {target / _FACTS_NAME}, {target / _PICTURE_NAME}")
