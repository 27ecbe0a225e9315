"""Checkpoints of a run (Orbax): the last few and the best, and the way back to the newest whole one.

A checkpoint holds the whole `TrainState`, and beside it the run's identity, the data's fingerprint and the number of
devices' worth of nothing: restored arrays take the shardings of the present mesh.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import Mesh

from jax_advtrain.training import disk
from jax_advtrain.training.state import TrainState, shardings

FOLDER, LAST, BEST = "checkpoints", "last", "best"
_SET_ASIDE = "broken"
_STATE, _SAVED = "state", "saved"  # the two items of a checkpoint


class Saved(NamedTuple):
    """What is kept beside the arrays: plain values.

    Attributes:
      identity: of `config.identity`.
      fingerprint: of the training data.
      epoch: of which the checkpoint was written.
      network: num_outputs, image_shape and class_names that the network was made for; {} in checkpoints of before they
        were kept.
    """

    identity: dict[str, Any]
    fingerprint: dict[str, Any]
    epoch: int
    network: dict[str, Any] = {}  # noqa: RUF012, never changed


class Checkpoints:
    """The two Orbax managers of a workdir. A class because Orbax's managers hold threads that must be closed."""

    def __init__(self, workdir: Path, *, keep: int, read_only: bool = False) -> None:
        self.folder = (workdir / FOLDER).absolute()
        self._managers = {name: _manager(self.folder / name, n, read_only) for name, n in ((LAST, keep), (BEST, 1))}
        self._is_read_only = read_only

    def save(self, which: str, state: TrainState, saved: Saved) -> None:
        """Starts writing; the arrays are copied first, so the state may be donated right after."""
        manager, step = self._managers[which], int(state.step)
        disk.check_room(self.folder, state)
        if step in manager.all_steps():
            manager.delete(step)
        arguments = ocp.args.Composite(
            **{_STATE: ocp.args.StandardSave(_as_dict(state)), _SAVED: ocp.args.JsonSave(saved._asdict())}
        )
        with disk.plain_errors(self.folder):
            manager.save(step, args=arguments, force=True)

    def wait(self) -> None:
        """Until all that was started is on the disk."""
        with disk.plain_errors(self.folder):
            for manager in self._managers.values():
                manager.wait_until_finished()

    def close(self) -> None:
        with disk.plain_errors(self.folder), contextlib.ExitStack() as stack:
            for manager in self._managers.values():
                stack.callback(manager.close)

    def path(self, which: str, before: int | None = None) -> Path | None:
        """Where the newest of that kind lies, if any; with `before` the newest of an earlier step."""
        steps = [step for step in self._managers[which].all_steps() if before is None or step < before]
        return self.folder / which / str(max(steps)) if steps else None

    def restore(
        self,
        which: str,
        template: TrainState,
        mesh: Mesh,
        check: Callable[[Saved], None],
        say: Callable[[str], None],
    ) -> tuple[TrainState, Saved] | None:
        """The newest whole checkpoint, or None where there is none.

        Args:
          template: a state of the right shapes; its values do not matter.
          mesh: arrays come back sharded over it, however many devices wrote them.
          check: raises ValueError where a readable checkpoint must not be used.
          say: told of each checkpoint that cannot be read; it is moved to `checkpoints/broken`, not deleted
            (left where it is if read only).
        """
        manager = self._managers[which]
        for step in sorted(manager.all_steps(), reverse=True):
            folder = self.folder / which / str(step)
            try:
                arguments = ocp.args.Composite(**{_SAVED: ocp.args.JsonRestore()})
                saved = Saved(**manager.restore(step, args=arguments)[_SAVED])
            except Exception as error:
                self._set_aside(which, folder, error, say)
                continue
            check(saved)
            try:
                arguments = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(_abstract(template, mesh))})
                found = manager.restore(step, args=arguments)[_STATE]
                return _from_dict(found, template), saved
            except Exception as error:
                self._set_aside(which, folder, error, say)
        return None

    def _set_aside(self, which: str, folder: Path, error: Exception, say: Callable[[str], None]) -> None:
        logging.debug("checkpoint %s: %s", folder, error)
        first = str(error).strip().splitlines()
        why = first[0][:160] if first else type(error).__name__
        if self._is_read_only:  # it may be that of a run at work, which deletes its older ones
            say(f"checkpoint {folder} cannot be read ({why}); the newest whole one is used")
            return
        target = self.folder / _SET_ASIDE / f"{which}-{folder.name}"
        number = 0
        while target.exists():
            number += 1
            target = target.with_name(f"{which}-{folder.name}.{number}")
        target.parent.mkdir(exist_ok=True)
        os.rename(folder, target)
        self._managers[which].reload()
        say(f"checkpoint {folder} cannot be read ({why}); it is kept as {target}, the newest whole one is used")


def newest(kind: Path) -> Path | None:
    """The folder of the newest checkpoint in checkpoints/last or checkpoints/best, readable or not."""
    if not kind.is_dir():
        return None
    steps = [int(path.name) for path in kind.iterdir() if path.name.isdigit()]
    return kind / str(max(steps)) if steps else None


def read_weights(checkpoint: Path) -> tuple[Saved, dict[str, Any]]:
    """A checkpoint's weights alone, without the run that it belongs to: the averaged ones where there are any.

    Args:
      checkpoint: the folder of one, checkpoints/best/123.

    Returns:
      What is kept beside the arrays, and {"params", "batch_stats"}: nested dicts of numpy arrays.

    Raises:
      ValueError: one line: it cannot be read.
    """
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            saved = Saved(**reader.restore(checkpoint / _SAVED))
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            there = reader.metadata(checkpoint / _STATE).item_metadata.tree
            names = ["averaged" if "averaged" in there else "params", *({"batch_stats"} & set(there))]
            wanted = {name: jax.tree.map(lambda _: np.zeros(()), there[name], is_leaf=_is_leaf) for name in names}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            restore = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
            found = reader.restore(checkpoint / _STATE, restore)
    except Exception as error:  # whatever Orbax and its storage say of a damaged folder
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(f"checkpoint {checkpoint} cannot be read ({why}); give another") from error
    return saved, {"params": found[names[0]], "batch_stats": found.get("batch_stats", {})}


def _is_leaf(node: Any) -> bool:
    return not isinstance(node, dict)


def _manager(folder: Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    if read_only:
        return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True))
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(folder, options=options)


def _as_dict(state: TrainState) -> dict[str, Any]:
    """Plain nested dicts and lists, so that a checkpoint needs none of our classes to be read."""
    kept = {name: value for name, value in state._asdict().items() if jax.tree.leaves(value)}
    kept["opt_state"] = {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(state.opt_state))}
    return kept


def _from_dict(found: Mapping[str, Any], template: TrainState) -> TrainState:
    leaves = [found["opt_state"][str(number)] for number in range(len(jax.tree.leaves(template.opt_state)))]
    opt_state = jax.tree.unflatten(jax.tree.structure(template.opt_state), leaves)
    return template._replace(**{**found, "opt_state": opt_state})


def _abstract(template: TrainState, mesh: Mesh) -> dict[str, Any]:
    def one(leaf, sharding):
        return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=sharding)

    return _as_dict(jax.tree.map(one, template, shardings(mesh, template)))
