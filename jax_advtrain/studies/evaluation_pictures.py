"""The pictures of an evaluation, in its folder: curves over the radius, and samples clean and attacked."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_advtrain.data import Dataset, to_unit
from jax_advtrain.evaluation import results, segmented, suite
from jax_advtrain.evaluation.attack_dataset import Attacked, attack_dataset, first, name_seed
from jax_advtrain.reports import curves, images
from jax_advtrain.reports import segmentation as segmentations
from jax_advtrain.reports.page import gallery
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import workdir
from jax_advtrain.training.experiment import Experiment
from jax_advtrain.training.monitor import monitored_radius

_CURVE_NAME, _DICE_NAME, _GALLERY_NAME = "accuracy_vs_radius.png", "dice_vs_radius.png", "images.png"


def draw(
    config: Any, target: Path, experiment: Experiment, logits_fn: jax.tree_util.Partial, data: Dataset, found
) -> None:
    """The pictures that are not there yet: a run killed while drawing is mended by the same command."""
    title = f"{config.defense.name} on {data.name}, {found['model']['checkpoint']} checkpoint"
    if found["headline"] and workdir.is_writer() and not (target / _CURVE_NAME).exists():
        curves.accuracy_vs_radius(found, target / _CURVE_NAME, title=title)
    if data.is_dense and workdir.is_writer() and not (target / _DICE_NAME).exists():
        segmentations.dice_vs_radius(found, target / _DICE_NAME, title=title)
    wanted = (data.images.ndim == 4 or data.is_dense) and config.eval.figures and suite.texts(config.monitor.attacks)
    names = (_GALLERY_NAME, *((gallery.GALLERY_NAME,) if config.report.images and not data.is_dense else ()))
    if wanted and not workdir.agreed(all((target / name).exists() for name in names)):
        _draw_gallery(config, target / _GALLERY_NAME, experiment, logits_fn, data)


def _draw_gallery(
    config: Any, path: Path, experiment: Experiment, logits_fn: jax.tree_util.Partial, data: Dataset
) -> None:
    """Clean, attacked and difference of a few images, under the monitor's last attack at its radius; and their pixels,
    for the report, unless it is to show none. Of segmentation the predictions over them."""
    norm, epsilon = monitored_radius(config)
    few = _fullest(data, config.eval.figures) if data.is_dense else first(data, config.eval.figures)
    task = experiment.attacked_task
    member = experiments.members(experiment, suite.texts(config.monitor.attacks))[-1]
    clean = attack_dataset(None, logits_fn, few, experiment.mesh, task=task)
    found = attack_dataset(
        member.build(norm),
        logits_fn,
        few,
        experiment.mesh,
        norm=norm,
        epsilon=epsilon,
        seed=name_seed(config.seed, "gallery"),
        keep_images=True,
        task=task,
    )
    assert found.images is not None
    if not workdir.is_writer():
        return
    if data.is_dense:
        _draw_overlays(path, few, clean, found, f"{member.label}, {norm} {epsilon:g}")
        return
    pixels = np.asarray(to_unit(few.images))
    if config.report.images:
        kept: dict[str, Any] = gallery.arrays(
            pixels,
            found.images,
            id=few.ids,
            label=few.labels,
            clean_prediction=clean.prediction,
            attacked_prediction=found.prediction,
            clean_confidence=clean.confidence,
            attacked_confidence=found.confidence,
            distance=found.distance,
            class_names=few.class_names,
            attack=member.label,
            norm=norm,
            epsilon=epsilon,
        )
        place = path.with_name(gallery.GALLERY_NAME)
        results.write_atomically(place, lambda file: np.savez_compressed(file, **kept))
    images.attack_grid(
        pixels,
        found.images,
        path,
        labels=few.labels.tolist(),
        clean_predictions=clean.prediction.tolist(),
        attacked_predictions=found.prediction.tolist(),
        clean_confidence=clean.confidence.tolist(),
        attacked_confidence=found.confidence.tolist(),
        class_names=few.class_names,
        title=f"{member.label}, {norm} {epsilon:g}",
        limit=config.eval.figures,
    )


def _fullest(data: Dataset, count: int) -> Dataset:
    """Of each of the first cases the sample with the most foreground."""
    area = (data.labels > 0).reshape(len(data), -1).sum(axis=1)
    owners = segmented.cases_of(data)
    cases = [np.flatnonzero(owners == case) for case in list(dict.fromkeys(owners.tolist()))[:count]]
    return data.take(np.array([rows[np.argmax(area[rows])] for rows in cases]))


def _draw_overlays(path: Path, few: Dataset, clean: Attacked, found: Attacked, title: str) -> None:
    """In the plane; of a volume the slice along the last axis that has the most foreground. The first channel is
    shown."""
    pixels = [np.asarray(to_unit(few.images))[..., 0], np.asarray(found.images)[..., 0]]
    labels = [few.labels, clean.prediction, found.prediction]
    if few.labels.ndim == 4:
        fullest = np.argmax((few.labels > 0).sum(axis=(1, 2)), axis=-1)
        rows = np.arange(len(few))
        pixels, labels = ([one[rows, :, :, fullest] for one in group] for group in (pixels, labels))
    groups = few.groups
    clean_pixels, attacked_pixels = pixels
    segmentations.overlays(
        clean_pixels,
        attacked_pixels,
        path,
        truth=labels[0],
        clean_prediction=labels[1],
        attacked_prediction=labels[2],
        class_names=few.class_names,
        names=[few.group_names[group] for group in groups] if groups is not None else few.ids.tolist(),
        title=title,
    )
