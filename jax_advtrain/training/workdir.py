"""The folder of a run: who may write to it, whose run it holds, and its log of epochs.

config.json      the config, plain values, never executed
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
from typing import Any

from jax_advtrain.evaluation.results import write_atomically

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"
_LOCK_NAME = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the lock falls with the process, however it ends.

    Raises:
      ValueError: another process holds it.
      OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK_NAME, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ValueError(
                f"{folder}: another run (process {holder}) is at work there; give another --workdir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def read_config(folder: Path) -> dict[str, Any] | None:
    """The config of the run that the folder holds, or None where it holds none.

    Raises:
      ValueError: config.json is there and cannot be read.
    """
    path = folder / CONFIG_NAME
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not whole ({error}); restore it, or give another --workdir") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no config; give another --workdir")
    return found


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Keeps the plain config."""
    write_json(folder / CONFIG_NAME, config)


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under a temporary name, then renames."""
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
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
    if (folder / METRICS_NAME).exists():
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(folder / METRICS_NAME, lambda file: file.write(text.encode()))
    return kept


def append_metrics(folder: Path, line: Mapping[str, Any]) -> None:
    """Adds one epoch's line, on the disk before this returns: a checkpoint of that epoch never lacks its line."""
    with open(folder / METRICS_NAME, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
