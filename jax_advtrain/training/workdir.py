"""The folder of a run: who may write to it, whose run it holds, and its log of epochs.

config.json      the config, plain values, never executed
data.json        fingerprints of the three splits
metrics.jsonl    one line an epoch
checkpoints/     last/ and best/, of Orbax
events/          tensorboard
plots/           pictures of training
eval/<name>/     one folder an evaluation
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_advtrain.evaluation.results import write_atomically

CONFIG_NAME = "config.json"
DATA_NAME = "data.json"
METRICS_NAME = "metrics.jsonl"
_LOCK_NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock falls with the process, however it ends.

    A folder in which nothing but the lock was left, because the first write failed, is removed again.

    Raises:
      ValueError: another process holds it.
      OSError: the folder cannot be written.
    """
    if not is_writer():  # of several processes, the first one holds the folder for all
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK_NAME
    try:
        with _hold(path) as file:
            try:
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                yield
            finally:
                # Still held: whoever opened the file meanwhile finds that it is no longer the one in the folder.
                if [one.name for one in folder.iterdir()] == [_LOCK_NAME]:
                    path.unlink()
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _hold(path: Path) -> IO[str]:
    """The lock's file, open and locked."""
    while True:
        file = open(path, "a+")  # noqa: SIM115, the caller closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    return file
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise ValueError(
                f"{path.parent}: another run (process {holder}) is at work there; let it end, or give another --workdir"
            ) from None
        except BaseException:
            file.close()
            raise
        file.close()


def read_config(folder: Path) -> dict[str, Any] | None:
    """The config of the run that the folder holds, or None where it holds none.

    Raises:
      ValueError: config.json is there and cannot be read.
    """
    return _read_kept(folder / CONFIG_NAME)


def read_fingerprints(folder: Path) -> dict[str, Any] | None:
    """The data that the run was started with, {split: fingerprint}, or None where that was not kept.

    Raises:
      ValueError: data.json is there and cannot be read.
    """
    return _read_kept(folder / DATA_NAME)


def _read_kept(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not whole ({error}); restore it, or give another --workdir") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not of this program; give another --workdir")
    return found


def newest_step(folder: Path, which: str) -> int:
    """The step of the newest checkpoint of a kind ("last", "best"), readable or not; 0 where there is none."""
    try:
        steps = [int(path.name) for path in (folder / "checkpoints" / which).iterdir() if path.name.isdigit()]
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max(steps, default=0)


def is_writer() -> bool:
    """Whether this process writes to the folder: of several processes, the first."""
    return jax.process_index() == 0


def agreed(found: bool) -> bool:
    """What the writer found, on all processes: what the folder holds may change between two looks, and a process that
    works while another does not would wait for ever."""
    if jax.process_count() == 1:
        return found
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(found)))


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Keeps the plain config."""
    write_json(folder / CONFIG_NAME, config)


def write_fingerprints(folder: Path, fingerprints: Mapping[str, Any]) -> None:
    """Keeps the fingerprints of the splits."""
    write_json(folder / DATA_NAME, fingerprints)


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under a temporary name, then renames; nothing where another process is the writer, or where just this
    is there already."""
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    if is_writer() and not (path.is_file() and path.read_bytes() == text.encode()):
        write_atomically(path, lambda file: file.write(text.encode()))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The epochs' lines, in order; a half-written last line (a killed run's) is left out."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for text in (folder / METRICS_NAME).read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def cut_metrics(folder: Path, step: int) -> list[dict[str, Any]]:
    """Drops the lines past a restored step, for their epochs will be run again; returns those kept."""
    kept = [line for line in read_metrics(folder) if line["step"] <= step]
    if is_writer() and (folder / METRICS_NAME).exists():
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(folder / METRICS_NAME, lambda file: file.write(text.encode()))
    return kept


def append_metrics(folder: Path, line: Mapping[str, Any]) -> None:
    """Adds one epoch's line, on the disk before this returns: a checkpoint of that epoch never lacks its line."""
    if not is_writer():
        return
    with open(folder / METRICS_NAME, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
