"""The training loop: epochs of steps, a line and a checkpoint an epoch, stopped and resumed at any step."""

import collections
import contextlib
import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jax_advtrain import margins
from jax_advtrain.defenses import HeldOut
from jax_advtrain.devices import AXIS, spread
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import suite
from jax_advtrain.training import experiment as experiments
from jax_advtrain.training import feed, workdir
from jax_advtrain.training.checkpoints import BEST, LAST, Checkpoints, Saved
from jax_advtrain.training.display import Display
from jax_advtrain.training.experiment import Experiment
from jax_advtrain.training.monitor import is_best, monitor, monitored_radius, stops_early, summary
from jax_advtrain.training.state import TrainState, averages_epochs, epoch_ended, shardings
from jax_advtrain.training.step import HostBatch, make_step, means

# Steps that may be under way at once: enough to keep a device busy, few enough that batches do not pile up.
_UNDER_WAY = 2
# How long after those of others a signal to the whole job may reach this process.
_SIGNAL_SECONDS = 2.0


class Diverged(RuntimeError):
    """The loss is not finite; the text names the last good checkpoint."""


class Stopped(RuntimeError):
    """A signal asked for the end; the state is saved and the same command resumes."""


def train(experiment: Experiment, config: Any, folder: Path, saved: Saved, display: Display) -> TrainState:
    """Trains from the newest whole checkpoint, or from the start, to the last epoch.

    The order on resume: restore the state, cut the log back to its step, go on at that step of its epoch. The order at
    an epoch's end: the log line first, then the checkpoint, so that no checkpoint lacks its line.

    Args:
      experiment: of `experiment.build`.
      config: the validated config.
      folder: the workdir, locked by the caller.
      saved: identity and fingerprint that checkpoints carry.
      display: told of progress.

    Returns:
      The final state.

    Raises:
      Diverged, Stopped: see there.
      ValueError: a checkpoint that belongs to other data.
    """
    checkpoints = Checkpoints(folder, keep=config.checkpoint.keep)
    try:
        return _train(experiment, config, folder, saved, display, checkpoints)
    finally:
        checkpoints.close()


def _train(experiment, config, folder, saved, display, checkpoints) -> TrainState:
    mesh, per_epoch = experiment.mesh, experiment.steps_per_epoch
    state, step_number = restore_or_start(experiment, saved, checkpoints, LAST, display)
    if not step_number and config.init_from and experiment.started_from is None:
        # Its weights were not looked at, for there seemed to be a checkpoint.
        raise ConfigError(
            f"no checkpoint in {checkpoints.folder} can be read; to start anew from init_from={config.init_from!r} "
            "give another --workdir"
        )
    lines = workdir.cut_metrics(folder, step_number)
    if step_number >= experiment.total_steps or stops_early(lines, config.patience, config.checkpoint.best_by):
        return state
    step = make_step(experiment.recipe, mesh, state, experiment.example)
    count_margins = _margin_counter(experiment)
    train, waiting = experiment.splits.train, feed.Waiting()
    made = feed.batches(mesh, train, experiment.visits, step_number, experiment.total_steps)
    # Processes that read batches start while the step is compiled.
    with feed.ahead(made, waiting) as batches, contextlib.ExitStack() as stack:
        display.say(f"compiling the training step for {mesh.size} device(s)")
        started = time.perf_counter()
        compiled = step.lower(state, experiment.example, jnp.int32(0)).compile()
        display.say(f"compiled in {time.perf_counter() - started:.1f} s")
        stop = stack.enter_context(_stop_signals())
        shown = stack.enter_context(display.training(experiment, lines, folder, step_number))
        for number in range(step_number // per_epoch, experiment.epochs):
            first_step = step_number - number * per_epoch
            started, losses = time.perf_counter(), collections.deque()
            waiting.seconds = 0.0
            for batch in _until_stopped(itertools.islice(batches, per_epoch - first_step), stop):
                state, loss = compiled(state, batch, jnp.int32(number))
                step_number += 1
                losses.append(loss)
                while len(losses) > _UNDER_WAY:
                    shown.step(number, _finite(losses.popleft(), checkpoints, number, step_number - len(losses)))
                if stop.is_set():
                    break
            # Before anything is saved every loss is looked at.
            while losses:
                shown.step(number, _finite(losses.popleft(), checkpoints, number, step_number - len(losses)))
            if stop.is_set() and step_number < (number + 1) * per_epoch:
                checkpoints.wait()
                if workdir.newest_step(folder, LAST) != step_number:
                    checkpoints.save(LAST, state, saved._replace(epoch=number))
                    checkpoints.wait()
                raise Stopped(f"stopped at step {step_number} and saved; the same command resumes")
            seconds = time.perf_counter() - started
            sums = {name: float(value) for name, value in state.sums.items()}
            line = {
                "epoch": number + 1,
                "step": step_number,
                "seconds": seconds,
                "samples_per_second": sums["count"] * (1 - first_step / per_epoch) / seconds,
                "input_wait": waiting.seconds / seconds,
                "train": {name: value for name, value in means(sums).items() if not name.startswith("margin_")},
            }
            if unread := len(train) - int(sums["count"]):
                line["unread"] = unread  # data.on_bad_record="skip", of a streamed set
            if (settings := experiment.recipe.defense.margin_settings) is not None:
                delta, ceiling = settings
                counts = count_margins(state.sample_state["margin"], ceiling)
                earlier = [one["margins"] for one in lines if "margins" in one]
                line["margins"] = margins.statistics(counts, sums, delta=delta, ceiling=ceiling, earlier=earlier)
            is_last = number + 1 == experiment.epochs
            improves = False
            is_due = (number + 1) % config.monitor.every == 0
            if len(experiment.splits.validation) and (is_due or is_last):
                # A last epoch that is not due changes nothing of the method: with more epochs the run goes on as if
                # it had known of them.
                watched = time.perf_counter()
                if is_due:
                    state, line["validation"] = _epoch_ended(experiment, config, state)
                else:
                    line["validation"], _ = _monitored(experiment, config, state)
                line["monitor_seconds"] = time.perf_counter() - watched
                by = config.checkpoint.best_by
                improves = is_best(line, lines, by)
            state = state._replace(sums=jax.tree.map(jnp.zeros_like, state.sums))
            workdir.append_metrics(folder, line)
            lines.append(line)
            if not is_last and stops_early(lines, config.patience, config.checkpoint.best_by):
                display.say(f"no epoch of the last {config.patience} was the best: training ends here (patience)")
                is_last = True
            if improves:
                checkpoints.save(BEST, state, saved._replace(epoch=number + 1))
                # The best first: a kill after the last one is whole would leave an epoch that is never the best again.
                checkpoints.wait()
            if is_last or stop.is_set() or (number + 1) % config.checkpoint.every_epochs == 0:
                checkpoints.save(LAST, state, saved._replace(epoch=number + 1))
            shown.epoch(line)
            if stop.is_set():
                checkpoints.wait()
                raise Stopped(f"stopped after epoch {number + 1} and saved; the same command resumes")
            if is_last:
                break
        checkpoints.wait()
    return state


def restore_or_start(
    experiment: Experiment, saved: Saved, checkpoints: Checkpoints, which: str, display: Display
) -> tuple[TrainState, int]:
    """The newest whole checkpoint of that kind, or the state before the first step; and its step.

    Raises:
      ValueError: the checkpoint was made with other data, whose margins would belong to other images.
    """

    def check(found: Saved) -> None:
        if found.fingerprint != saved.fingerprint:
            differing = _differing(found.fingerprint, saved.fingerprint)
            raise ConfigError(
                f"the checkpoint in {checkpoints.folder} was trained on other data ({differing}); per-sample state "
                "would belong to other images: give the same data, or another --workdir"
            )

    placed = shardings(experiment.mesh, experiment.template)
    found = checkpoints.restore(which, experiment.template, experiment.mesh, check, display.say)
    if found is None:
        # Not aliased: the steps donate the state, and the template serves again.
        return jax.device_put(experiment.template, placed, may_alias=False), 0
    step_number = int(found[0].step)
    display.say(
        f"restored {which} checkpoint of step {step_number} ({step_number / experiment.steps_per_epoch:g} epochs)"
    )
    return found[0], step_number


def _differing(one: dict[str, Any], other: dict[str, Any]) -> str:
    """Which fields of two fingerprints differ, in words."""
    return ", ".join(
        f"{name}: {one.get(name)} there, {other.get(name)} here" for name in other if one.get(name) != other[name]
    )


def _until_stopped(batches: Iterator[HostBatch], stop: threading.Event) -> Iterator[HostBatch]:
    """The batches. The signal that asks for a stop may have reached the processes that read them first: no error."""
    try:
        yield from batches
    except feed.WorkersGone:
        if not stop.wait(_SIGNAL_SECONDS):
            raise


def _finite(loss: jax.Array, checkpoints: Checkpoints, number: int, step_number: int) -> float:
    """The loss of a step, as a float. Weights whose very first loss is not finite are no good checkpoint."""
    value = float(loss)
    if not math.isfinite(value):
        checkpoints.wait()
        path = checkpoints.path(LAST, before=step_number - 1) or checkpoints.path(BEST, before=step_number - 1)
        good = f"the last good checkpoint is {path}" if path else "there is no good checkpoint"
        raise Diverged(f"the loss became {value} in epoch {number + 1}; {good}. Try a lower learning rate or clip_norm")
    return value


def _monitored(experiment: Experiment, config: Any, state: TrainState) -> tuple[dict[str, Any], HeldOut]:
    norm, epsilon = monitored_radius(config)
    found = monitor(
        experiment.logits_fn(state),
        experiment.splits.validation,
        config.monitor.num_samples,
        experiments.members(experiment, suite.texts(config.monitor.attacks)),
        experiment.mesh,
        norm=norm,
        epsilon=epsilon,
        seed=config.seed,
        batch_size=config.eval.batch_size,
        epoch=int(state.step) // experiment.steps_per_epoch,
        task=experiment.attacked_task,
    )
    attacks = list(suite.texts(config.monitor.attacks))
    return {**summary(found), "norm": norm, "epsilon": epsilon, "attacks": attacks}, found


def _epoch_ended(experiment: Experiment, config: Any, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state with what the method makes of held-out accuracies, and their part of the log line."""
    defense, mesh = experiment.recipe.defense, experiment.mesh
    if not averages_epochs(defense):
        line, held_out = _monitored(experiment, config, state)
        return epoch_ended(defense, mesh, state, held_out), line
    # Whether an epoch enters the average hangs on its own weights; what is logged and chosen is the average after it.
    _, held_out = _monitored(experiment, config, state._replace(averaged=None))
    state = epoch_ended(defense, mesh, state, held_out)
    return state, _monitored(experiment, config, state)[0]


def _margin_counter(experiment: Experiment) -> Callable[[jax.Array, float], margins.MarginCounts]:
    """Counts margins where they lie; only the counts travel between devices."""
    valid = spread(experiment.mesh, (experiment.layout >= 0).reshape(-1))

    def local(values, valid, ceiling):
        return jax.tree.map(lambda part: jax.lax.psum(part, AXIS), margins.count(values, valid, ceiling))

    counter = jax.jit(jax.shard_map(local, mesh=experiment.mesh, in_specs=(P(AXIS), P(AXIS), P()), out_specs=P()))
    return lambda values, ceiling: jax.tree.map(np.asarray, counter(values, valid, jnp.asarray(ceiling, values.dtype)))


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """SIGTERM and SIGINT ask for a stop at the next step; outside the main thread nothing is caught."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
