"""Opening a workdir: all that can be wrong is found here, before any work, and nothing is written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jax_advtrain import config as configs
from jax_advtrain import devices
from jax_advtrain.config_check import validate
from jax_advtrain.data import Dataset
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import results, suite
from jax_advtrain.evaluation.attack_dataset import first
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import loop, workdir
from jax_advtrain.training.checkpoints import LAST, Checkpoints, Saved
from jax_advtrain.training.display import Display
from jax_advtrain.training.experiment import Experiment
from jax_advtrain.training.state import TrainState

_MOST_TOLD = 6  # differing fields


@contextlib.contextmanager
def config_errors() -> Iterator[None]:
    """Before work begins, what the rooms refuse (ValueError) is the user's to mend: one line, no traceback. From then
    on a ValueError is a bug of this program and keeps its traceback."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def set_up(config: Any, folder: Path, *, is_training: bool = True) -> Experiment:
    """Finds all that can be wrong before work begins, and builds the experiment; writes nothing into the workdir.

    Raises:
      ConfigError: one line.
    """
    with config_errors():
        mesh = all_devices()
        validate(config, mesh.size)
        if config.eval.check_samples and jax.process_count() > 1:
            raise ConfigError("eval.check_samples needs one process; set it to 0, and check the model on one machine")
        if is_training and config.eval.correction:
            raise ConfigError(
                f"eval.correction is {config.eval.correction!r}; it is for --mode=evaluate and --mode=diagnose of a "
                "trained run"
            )
        refuse_other_run(config, folder)
        # A run that has a checkpoint goes on without the weights that it once started from.
        is_start = is_training and not workdir.newest_step(folder, LAST)
        if is_start:
            _refuse_orphans(folder)
        experiment = experiments.build(config, mesh, is_start=is_start)
        refuse_other_data(folder, experiment)
        for field in ("eval", "monitor"):
            experiments.members(experiment, suite.texts(config[field].attacks))
        if not is_training:
            return experiment
        steps = workdir.newest_step(folder, LAST)
        if steps > experiment.total_steps:
            trained = steps / experiment.steps_per_epoch
            raise ConfigError(
                f"{folder} has trained {trained:g} epochs, epochs is {config.epochs}; it may only grow: give at least "
                "as many, or another --workdir"
            )
        samples(experiment, "eval", config)
        if config.beside and experiment.splits.train.image_shape != (2,):
            raise ConfigError(
                f"beside needs points in the plane; {experiment.splits.train.name!r} has samples of shape "
                f"{experiment.splits.train.image_shape}"
            )
        return experiment


def _refuse_orphans(folder: Path) -> None:
    """Results whose weights are gone: a training from the beginning would take them for its own."""
    for found in sorted((folder / "eval").glob(f"*/{results.RESULTS_NAME}"))[:1]:
        raise ConfigError(
            f"{folder} holds results (eval/{found.parent.name}) of a run whose checkpoints are gone: give another "
            "--workdir, or move its folder eval away to train from the beginning"
        )


def samples(experiment: Experiment, section: str, config: Any) -> Dataset:
    """The samples that a section of the config (eval, margins) names: the first num_samples of its split.

    Raises:
      ConfigError: the split is empty.
    """
    split = config[section].split
    whole = getattr(experiment.splits, split)
    if whole.is_streamed:
        raise ConfigError(f"{section}.split is {split!r}, which is streamed for training only; give another split")
    found = first(whole, config[section].num_samples)
    if not len(found):
        raise ConfigError(f"{section}.split is {split!r}, which is empty; set data.{split}_size, or give another split")
    return found


def notices(experiment: Experiment) -> list[str]:
    """A line for each split that lacks a class of the set: nothing can be learnt, or told, of it there."""
    lines = []
    for name, split in experiment.splits._asdict().items():
        if not len(split) or split.is_dense:
            continue
        counts = np.bincount(split.labels, minlength=split.num_classes)
        kept = split.kept_classes  # others that were left out on purpose may keep their numbers
        meant = kept if kept is not None and len(kept) < split.num_classes else range(split.num_classes)
        empty = [split.class_names[k] for k in meant if not counts[k]]
        if empty:
            more = ", ..." if len(empty) > 5 else ""
            lines.append(
                f"{name} has no sample of {len(empty)} of the {len(meant)} classes: {', '.join(empty[:5])}{more}"
            )
    return lines


def all_devices(*, multihost: bool = False) -> Mesh:
    """All devices along one axis.

    With `multihost` (then this must be the first use of JAX) those of all processes: JAX finds the others on clusters
    that it knows (Slurm, Open MPI, TPU pods), or by the environment: JAX_COORDINATOR_ADDRESS=HOST:PORT of the first
    process, JAX_NUM_PROCESSES, JAX_PROCESS_ID.

    Raises:
      ConfigError: JAX has no devices, or the processes do not find each other.
    """
    try:
        if multihost:
            count, number = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
            jax.distributed.initialize(
                num_processes=int(count) if count else None, process_id=int(number) if number else None
            )
        return devices.make_mesh()
    except (RuntimeError, ValueError) as error:
        hint = "; start under Slurm or the like, or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        raise ConfigError(f"{f'--multihost{hint}' if multihost else 'JAX finds no devices'}: {error}") from error


def saved_facts(config: Any, experiment: Experiment) -> Saved:
    """What checkpoints carry beside the arrays."""
    train = experiment.splits.train
    network = {
        "num_outputs": 1 if experiment.is_binary else train.num_classes,
        "image_shape": list(train.image_shape),
        "class_names": list(train.class_names),
    }
    return Saved(configs.identity(config), train.fingerprint(), 0, network)


def fingerprints(experiment: Experiment) -> dict[str, Any]:
    """{split: fingerprint} of the splits that have samples."""
    return {name: split.fingerprint() for name, split in experiment.splits._asdict().items() if len(split)}


def refuse_other_run(config: Any, folder: Path) -> None:
    """Raises ConfigError where the workdir holds the run of another config."""
    there = workdir.read_config(folder)
    if there is None:
        if (folder / "checkpoints").exists():
            raise ConfigError(f"{folder} holds checkpoints and no {workdir.CONFIG_NAME}; give another --workdir")
        return
    try:
        kept = configs.identity(configs.from_plain(there))
    except ConfigError as error:
        raise ConfigError(f"{folder / workdir.CONFIG_NAME}: {error}; give another --workdir") from None
    differing = configs.differences(kept, configs.identity(config))
    if differing:
        more = f"; and {len(differing) - _MOST_TOLD} more" if len(differing) > _MOST_TOLD else ""
        told = f"{'; '.join(differing[:_MOST_TOLD])}{more}"
        raise ConfigError(f"{folder} holds a run of another config: {told}. Give another --workdir")


def refuse_other_data(folder: Path, experiment: Experiment) -> None:
    """Raises ConfigError where the workdir's run was started with other data."""
    there = workdir.read_fingerprints(folder)
    if there is None:
        return
    differing = configs.differences(_short(there), _short(fingerprints(experiment)))
    if differing:
        raise ConfigError(
            f"{folder} holds a run on other data: {'; '.join(differing)}. Its margins belong to those images: give the "
            "same data, or another --workdir"
        )


def _short(found: Any) -> Any:
    """Fingerprints with hashes that a person can compare."""
    if isinstance(found, dict):
        return {name: _short(part) for name, part in found.items()}
    return found[:8] if isinstance(found, str) and len(found) == 64 else found


def load_run(config: Any, folder: Path, which: str, display: Display) -> tuple[Experiment, TrainState]:
    """A finished or running workdir's experiment and checkpoint; nothing is written.

    Raises:
      ConfigError: no run there, another run, or no checkpoint yet.
    """
    with config_errors():
        if workdir.read_config(folder) is None:
            raise ConfigError(f"{folder} holds no run; train one with --mode=train, or give its --workdir")
        experiment = set_up(config, folder, is_training=False)
        state = restored(config, folder, experiment, which, display, read_only=True)
        if state is None:
            hint = (
                "" if len(experiment.splits.validation) else ": no validation data; give --config.eval.checkpoint=last"
            )
            raise ConfigError(f"{folder} has no whole {which} checkpoint yet{hint}")
        return experiment, state


def restored(
    config: Any, folder: Path, experiment: Experiment, which: str, display: Display, *, read_only: bool
) -> TrainState | None:
    """The newest whole checkpoint of that kind, or None."""
    if not (folder / "checkpoints" / which).is_dir():
        return None
    checkpoints = Checkpoints(folder, keep=config.checkpoint.keep, read_only=read_only)
    try:
        if checkpoints.path(which) is None:
            return None
        state, step = loop.restore_or_start(experiment, saved_facts(config, experiment), checkpoints, which, display)
        return state if step else None
    finally:
        checkpoints.close()
