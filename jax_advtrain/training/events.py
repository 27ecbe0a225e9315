"""Scalars for tensorboard, written in the caller's thread.

tensorboardX's own `SummaryWriter` writes in a thread; when that thread dies of a full disk, the next scalar waits for
ever. Here the same records go straight to the file, and a full disk is an error at once.
"""

from collections.abc import Mapping
from pathlib import Path
from time import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar


class Events:
    """One event file. A class because it holds an open file.

    Args:
      folder: where tensorboard looks; made if needed.
      first_step: scalars of this step and later ones, written by a run that was stopped, are hidden by tensorboard.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes {tag: value}, on the disk before this returns."""
        for tag, value in values.items():
            self._write(step, summary=scalar(tag, value))
        self._writer.flush()

    def _write(self, step: int, **content) -> None:
        self._writer.write_event(Event(wall_time=time(), step=step, **content))

    def close(self) -> None:
        self._writer.close()
