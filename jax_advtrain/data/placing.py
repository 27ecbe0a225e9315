"""Putting a finished folder where it belongs: written beside under a temporary name, and moved in one step."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ABANDONED_AFTER_SECONDS = 3600
_LOCK = "at_work.lock"


def place(final: Path, write: Callable[[Path], Path], what: str, abandoned_after: float) -> None:
    """Makes the folder `final` unless it is there.

    A kill leaves nothing half-written there, and of two at once the first one wins.

    Args:
      final: where the finished folder goes.
      write: gets an empty folder beside it to work in, and returns the finished folder below that.
      what: what is made, for messages.
      abandoned_after: seconds after which a leftover of a killed run, which no process holds, is removed.

    Raises:
      ValueError: nothing can be written there.
    """
    if final.exists():
        return
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(final.parent, abandoned_after)
        workplace = Path(tempfile.mkdtemp(prefix="incomplete.", dir=final.parent))
        try:
            with _held(workplace):
                finished = write(workplace)
                with contextlib.suppress(OSError):  # another process was first; if it was not, the check below tells
                    os.rename(finished, final)
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
    except OSError as error:
        reason = (error.strerror or str(error)) + (f" ({error.filename})" if error.filename else "")
        raise ValueError(
            f"cannot prepare {what} in {final.parent}: {reason}; set data.data_dir to another folder"
        ) from error
    if not final.exists():
        raise ValueError(f"cannot prepare {what} in {final}: the finished set could not be moved there")


def _remove_abandoned(folder: Path, abandoned_after: float) -> None:
    """Removes what killed preparations left. One that is at work now holds its folder, or is younger."""
    for leftover in folder.glob("incomplete.*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > abandoned_after:
                with _held(leftover):
                    shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Locks a folder against removal; the lock falls with the process.

    Where there are no locks (Windows, some network disks), age alone decides. Raises BlockingIOError where another
    process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(folder / _LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
