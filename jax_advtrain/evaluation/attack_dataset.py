"""One attack on every sample of a data set: static batch shapes, no sample dropped, one entry a sample."""

import math
import os
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_advtrain import attacks
from jax_advtrain.attacks.gradients import answers
from jax_advtrain.attacks.protocol import check_number
from jax_advtrain.attacks.until_success import UntilSuccess
from jax_advtrain.data import Dataset, first_positions, to_unit
from jax_advtrain.devices import AXIS, gathered, make_mesh, spread
from jax_advtrain.evaluation.active_set import Times
from jax_advtrain.evaluation.active_set import run as active_set_run
from jax_advtrain.evaluation.ledger import Ledger, Work, facts, sample_keys
from jax_advtrain.evaluation.state_file import NUM_PROBED, StateFile, identity_of
from jax_advtrain.tasks import CLASSIFICATION, Task

LogitsFn = Callable[[jax.Array], jax.Array]


class Attacked(NamedTuple):
    """What became of each sample; every array has shape (N,), but for `images`, and for `prediction` where it is dense.

    Attributes:
      is_right, score, zero_gradients, nonfinite_gradients: as in `attacks.AttackResult`.
      prediction: class on the attacked image, -1 where the model gives NaN; or (N, *space) that of every pixel.
      confidence: softmax probability of that class (of pixels the mean).
      distance: norm of the perturbation.
      winner: of a composed attack, the member or restart that this comes from; -1 = the clean image.
      work: of the active set, the passes in all, run and needed; else None.
      images: the attacked images, or None where they were not asked for.
    """

    is_right: np.ndarray
    score: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    distance: np.ndarray
    zero_gradients: np.ndarray
    nonfinite_gradients: np.ndarray
    winner: np.ndarray
    work: Work | None
    images: np.ndarray | None


@partial(jax.jit, static_argnames=("mesh", "task", "norm", "keep_images"))
def _attack_batch(mesh, task, norm, keep_images, attack, logits_fn, images, labels, ids, epsilon, seed, path):
    def local(attack, logits_fn, images, labels, ids, epsilon, seed, path):
        images = to_unit(images, jnp.zeros(()).dtype)
        keys = sample_keys(seed, ids, path)
        if attack is None:
            return facts(task, norm, keep_images, logits_fn, images, labels, keys, images, None)
        found = attack.run(keys, logits_fn, images, labels, epsilon=epsilon)
        return facts(task, norm, keep_images, logits_fn, images, labels, keys, found.images, found)

    rows, everywhere = P(AXIS), P()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(everywhere, everywhere, rows, rows, rows, everywhere, everywhere, everywhere),
        out_specs=rows,
    )(attack, logits_fn, images, labels, ids, epsilon, seed, path)


def name_seed(seed: int, name: str) -> int:
    """A seed for one named evaluation; the same in every process and run."""
    return (seed * 2654435761 + zlib.crc32(name.encode())) % 2**31


def first(data: Dataset, count: int | None) -> Dataset:
    """The first so many samples of a set (see `data.first_positions`), or those of its first so many groups; all where
    None, or more than there are."""
    if count is None or count >= len(data):
        return data
    if data.groups is not None:
        return data.take(first_groups(data.groups, count))
    return data.take(slice(count) if data.is_dense else first_positions(data.labels, count))


def first_groups(groups: np.ndarray, count: int) -> np.ndarray:
    """Positions of all samples of the first so many groups, in the order in which these come."""
    return np.flatnonzero(np.isin(groups, list(dict.fromkeys(groups.tolist()))[:count]))


def as_pytree(logits_fn: LogitsFn) -> LogitsFn:
    """The model as something that `jax.jit` takes as an argument.

    Pytrees (`jax.tree_util.Partial` with the weights as arguments, NNX and Equinox modules) stay as they are: their
    weights are traced, so other weights compile nothing. Any other callable is wrapped, and is part of the program: it
    compiles once for each function, with the arrays that it closes over as constants.
    """
    if not jax.tree_util.all_leaves([logits_fn]):
        return logits_fn
    try:
        hash(logits_fn)
    except TypeError:
        return jax.tree_util.Partial(lambda images: logits_fn(images))
    return jax.tree_util.Partial(logits_fn)


def _probe(logits_fn: LogitsFn, images: jax.Array) -> jax.Array:
    """The model's outputs on images without ids; the same in every run, of a stochastic model too."""
    return answers(logits_fn, images, sample_keys(0, jnp.arange(len(images)), ()), 0)


def num_outputs(logits_fn: LogitsFn, data: Dataset, task: Task = CLASSIFICATION) -> int:
    """How many logits the model gives for such samples (or for each of their pixels, where labels are dense), nothing
    computed; 1 where it gives shape (B,).

    Raises:
      ValueError: there are no samples; labels one a pixel and a task of images, or the other way round; logits of
        another shape than (B, classes) or (B,), or of dense labels (B, *space, classes); fewer than the classes.
    """
    if not len(data):
        raise ValueError(f"data set {data.name!r}, split {data.split!r} has no samples to attack")
    if task.is_dense != data.is_dense:
        kind = "one a pixel: give task=segmentation.segmentation(threshold)" if data.is_dense else "one an image"
        raise ValueError(f"labels of {data.name!r} are {kind}; the task is {task.name}")
    images = jax.ShapeDtypeStruct((2, *data.image_shape), jnp.zeros(()).dtype)
    shape = getattr(jax.eval_shape(_probe, as_pytree(logits_fn), images), "shape", None)
    if data.is_dense:
        space = data.labels.shape[1:]
        if shape is None or shape[:-1] != (2, *space):
            raise ValueError(
                f"the model gives {shape} for 2 samples; give one score a class for each pixel: (2, "
                f"{', '.join(map(str, space))}, classes)"
            )
        if shape[-1] < max(2, data.num_classes):
            raise ValueError(
                f"the model gives {shape[-1]} scores a pixel; {data.name!r} has {data.num_classes} classes"
            )
        return shape[-1]
    if shape == (2,):
        if data.num_classes != 2:
            raise ValueError(f"the model gives one logit a sample; {data.name!r} has {data.num_classes} classes, not 2")
        return 1
    if shape is None or len(shape) != 2 or shape[0] != 2:
        raise ValueError(f"the model gives {shape} for 2 samples; give logits (2, classes), or (2,) for one logit")
    if shape[1] < max(2, data.num_classes):
        raise ValueError(f"the model gives {shape[1]} logits; {data.name!r} has {data.num_classes} classes")
    return shape[1]


def stops_at_success(attack: attacks.Attack, num_classes: int) -> bool:
    """Whether an attack by itself lets a fooled sample rest: there the active set changes no answer."""
    if getattr(attack, "stops_early", False):
        return True
    return all(getattr(part.attack, "stops_early", False) for part in attacks.parts(attack, num_classes))


class _Stage(NamedTuple):
    """An attack that samples go through; None = clean. `steps` = what the active set steps, None = whole batches."""

    attack: attacks.Attack | None
    path: tuple[int, ...] = ()
    winner: int | None = None
    steps: attacks.Stepwise | None = None


def _stages(attack: attacks.Attack | None, active: bool, num_classes: int) -> list[_Stage]:
    if attack is None or not active:
        return [_Stage(attack)]
    stages = [_Stage(None)]
    for part in attacks.parts(attack, num_classes):
        steps: Any = attacks.until_success(part.attack) if isinstance(part.attack, attacks.Stepwise) else None
        if isinstance(steps, UntilSuccess):  # the active set itself keeps finished samples as they are
            steps = steps.attack
        stages.append(_Stage(part.attack, part.path, part.winner, steps))
    return stages


def attack_dataset(
    attack: attacks.Attack | None,
    logits_fn: LogitsFn,
    data: Dataset,
    mesh: Mesh | None = None,
    *,
    norm: str = "linf",
    epsilon: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
    keep_images: bool = False,
    progress: Callable[[int], None] = lambda done: None,
    active_set: bool | None = None,
    clean: Attacked | None = None,
    state_file: str | os.PathLike | None = None,
    times: Times | None = None,
    task: Task = CLASSIFICATION,
) -> Attacked:
    """Attacks every sample; a sample's randomness follows (seed, sample id), so batch size and devices don't matter.

    With the ACTIVE SET samples that are wrong on the clean image are out at once, with that image. The others go
    through the parts of the attack (restarts, members) one after the other, each part made `until_success`; a sample
    that is fooled is out, and the next one takes its slot of the batch, so that the devices stay full. Verdicts are
    those of `until_success(attack)` on whole batches; what was never fooled keeps its strongest part's image.

    Args:
      attack: None = clean.
      logits_fn: any function from images in [0, 1], (B, *image), to logits (B, classes) or (B,), that `jax.jit` can
        trace; see `as_pytree` for what another checkpoint costs. Of a stochastic model (`attacks.stochastic`) one
        draw, by seed and sample id, gives the verdict on what the attack found.
      data: what to attack; its values were checked when it was made.
      mesh: devices along one axis; None = all there are.
      norm: in which distances are told.
      epsilon: radius given to the attack; traced, so that another radius compiles nothing.
      batch_size: rounded up to a multiple of the devices; the last batch is padded with repeated samples.
      keep_images: return the attacked images too.
      progress: called with the number of samples done after each batch.
      active_set: None = where all parts of the attack stop at success by themselves (`until_success`): there it spares
        time and changes nothing. True = for any attack; plain PGD then counts as fooled what any of its iterates
        fooled, and minimum-norm attacks stop within the radius, so their distances are not the smallest. Parts
        that don't go step by step (noise, `on_boundary`) run in whole batches. False = whole batches.
      clean: what this function found for the same samples with attack None; spares the active set a pass.
      state_file: where to write, every half minute and after each part, what is known. If the file is there, it goes
        on from it, and the answer is the same as without the interruption. On several hosts all must see the file.
      times: a dict, at first empty, that several calls may share: the active set notes there how long its programs
        compile and step, by which it decides when fewer slots pay. It changes no answer.
      task: says what is right, how wrong it is, and what is kept of the outputs; the default also serves one logit.
        The attack must have been made for the same task.

    Raises:
      ValueError: no samples, a negative or NaN epsilon, logits that do not fit the classes, a state file of another
        evaluation.

    Example:
      >>> attack = attacks.pgd(norm="l2", epsilon=0.0, num_steps=20)
      >>> found = attack_dataset(attack, lambda images: images @ weights, data, norm="l2", epsilon=0.5)
      >>> found.is_right.mean(), found.distance.max()
    """
    check_number("epsilon", epsilon)
    num_classes = max(2, num_outputs(logits_fn, data, task))
    mesh, logits_fn = mesh or make_mesh(), as_pytree(logits_fn)
    batch_size = math.ceil(min(batch_size, len(data)) / mesh.size) * mesh.size
    if active_set is None:
        active_set = attack is not None and stops_at_success(attack, num_classes)
    stages = _stages(attack, active_set, num_classes)
    ledger, file, told = Ledger(len(data), len(stages)), None, 0
    times = {} if times is None else times
    if state_file is not None:
        file = _state_file(state_file, attack, logits_fn, data, norm, epsilon, seed, keep_images, active_set)
        file.restore(ledger)

    for number, stage in enumerate(stages):

        def note(positions, found, work, number=number, stage=stage):
            nonlocal told
            if stage.winner is not None:
                found = {**found, "winner": np.full_like(found["winner"], stage.winner)}
            is_first = stage.attack is None and len(stages) > 1
            ledger.work = ledger.work.plus(*work)
            ledger.note(number, positions, found, stops=len(stages) > 1, clean=is_first)
            if file:
                file.save(ledger, now=False)
            if ledger.finished > told:
                told = ledger.finished
                progress(told)

        queue = ledger.waiting(number)
        where = (logits_fn, data, queue)
        how: dict[str, Any] = {
            **dict(norm=norm, epsilon=epsilon, seed=seed, path=stage.path, batch_size=batch_size),
            **dict(keep_images=keep_images, harvest=note, task=task),
        }
        if stage.attack is None and len(stages) > 1 and _covers(clean, data, keep_images):
            assert clean is not None
            note(queue, {name: values[queue] for name, values in _arrays(clean, keep_images).items()}, Work())
        elif stage.steps is None:
            _whole_batches(mesh, stage.attack, *where, **how)
        else:
            active_set_run(mesh, stage.steps, *where, **how, times=times)
        if file and len(queue):
            file.save(ledger, now=True)
    if told < len(data):
        progress(len(data))
    return Attacked(**{"images": None, "work": ledger.work if active_set else None, **ledger.facts})


def _whole_batches(
    mesh, attack, logits_fn, data, queue, *, norm, epsilon, seed, path, batch_size, keep_images, harvest, task
) -> None:
    """One attack on the samples at the positions in `queue`; arguments as in `active_set.run`."""
    passes = 1 if attack is None else attack.passes
    for first in range(0, len(queue), batch_size):
        here = queue[first : first + batch_size]
        positions = np.resize(here, batch_size)
        found = _attack_batch(
            mesh,
            task,
            norm,
            keep_images,
            attack,
            logits_fn,
            spread(mesh, data.images, positions),
            spread(mesh, data.labels, positions),
            spread(mesh, data.ids.astype(np.int32), positions),
            jnp.asarray(epsilon, jnp.zeros(()).dtype),
            seed,
            path,
        )
        told = {name: gathered(values)[: len(here)] for name, values in found.items()}
        harvest(here, told, Work(passes * batch_size, passes * len(here)))


def _arrays(found: Attacked, keep_images: bool) -> dict[str, np.ndarray]:
    left_out = ("work",) if keep_images else ("work", "images")
    return {name: values for name, values in found._asdict().items() if name not in left_out}


def _covers(clean: Attacked | None, data: Dataset, keep_images: bool) -> bool:
    return clean is not None and len(clean.is_right) == len(data) and not (keep_images and clean.images is None)


def _state_file(path, attack, logits_fn, data, norm, epsilon, seed, keep_images, active_set) -> StateFile:
    settings = dict(norm=norm, epsilon=float(epsilon), seed=int(seed), images=keep_images, active_set=active_set)
    few = to_unit(np.resize(data.images, (NUM_PROBED, *data.image_shape)), jnp.zeros(()).dtype)
    probed = np.asarray(jax.jit(_probe)(logits_fn, few), np.float32)
    return StateFile(path, identity_of(data, attack, logits_fn, **settings), probed)
