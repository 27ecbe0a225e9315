"""A full disk is found before a checkpoint is begun, and said in the system's own words.

Orbax writes in threads of its own; what goes wrong there comes back late, as one of a dozen kinds of exception, after
pages of logged tracebacks.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

# A checkpoint's own files beside the arrays, each of them at least a block.
_SLACK_BYTES = 1 << 20
_TENSORSTORE_CODE = re.compile(r"os_error_code='(\d+)'")


def check_room(folder: Path, state: Any) -> None:
    """Raises OSError where a folder's disk has no room for two copies of a state (the last and the best).

    Args:
      folder: where the checkpoints go; it exists.
      state: pytree of arrays.
    """
    needed = _SLACK_BYTES + 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    if shutil.disk_usage(folder).free < needed:
        raise OSError(
            errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (a checkpoint needs {needed / 1e6:.1f} MB)", str(folder)
        )


@contextlib.contextmanager
def plain_errors(folder: Path) -> Iterator[None]:
    """Turns what the system refused, however it is wrapped, into the OSError that it was."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        code = _system_code(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(folder)) from error


def _system_code(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if found := _TENSORSTORE_CODE.search(str(error)):
            return int(found[1])
        if os.strerror(errno.ENOSPC) in str(error):
            return errno.ENOSPC
        error = error.__cause__ or error.__context__
    return None
