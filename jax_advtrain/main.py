"""The command line.

    python -m jax_advtrain.main --config=configs/digits_ima.py
    python -m jax_advtrain.main --help

Bad input is answered with one line and exit code 2, before any work.
"""

import errno
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax_advtrain import command_line
from jax_advtrain.errors import ConfigError
from jax_advtrain.studies import (
    beside,
    comparing,
    correcting,
    diagnosis,
    equilibrium,
    evaluations,
    exporting,
    homing,
    opening,
    runs,
    surveys,
)
from jax_advtrain.training.display import Display
from jax_advtrain.training.loop import Diverged, Stopped

# Modes that ask which class an image is taken for.
_OF_CLASSES = ("diagnose", "homing", "equilibrium", "correct")
DONE, DIVERGED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def run(asked: command_line.Asked, display: Display) -> None:
    """What a command line asks for; raises what `main` turns into a line and an exit code."""
    config: Any = asked.config
    if asked.mode in _OF_CLASSES and config.get("dice_threshold") is not None:
        raise ConfigError(
            f"--mode={asked.mode} looks at one class an image, and this is segmentation (dice_threshold is set); "
            "give --mode=evaluate, margins or export"
        )
    if asked.mode == "evaluate":
        evaluations.evaluate_run(config, asked.workdir, display)
    elif asked.mode == "margins":
        surveys.survey_run(config, asked.workdir, display)
    elif asked.mode == "diagnose" and asked.workdirs:
        comparing.compare_runs(config, asked.workdirs, asked.workdir, display)
    elif asked.mode == "diagnose":
        diagnosis.diagnose_run(config, asked.workdir, display)
    elif asked.mode == "homing":
        homing.home_run(config, asked.workdir, display)
    elif asked.mode == "equilibrium":
        equilibrium.compare_margins(config, asked.workdir, display)
    elif asked.mode == "correct":
        correcting.correct_run(config, asked.workdir, display)
    elif asked.mode == "export":
        exporting.export_run(config, asked.workdir, display)
    elif config.beside:
        beside.train_beside(config, asked.workdir, display)
    else:
        runs.train_and_evaluate(config, asked.workdir, display)


def main(argv: list[str] | None = None) -> int:
    """Runs a command line (by default the process's) and returns the exit code."""
    return answered(command_line.read, run, argv)


def answered(
    read: Callable[[list[str]], command_line.Asked | None],
    run: Callable[[command_line.Asked, Display], None],
    argv: list[str] | None = None,
) -> int:
    """Reads a command line and runs it; returns the exit code.

    0: done, or stopped by a signal and saved; 1: training diverged; 2: bad input or no place to write; 130: interrupted
    outside training. Errors of this program itself keep their traceback.
    """
    _silence_libraries()
    folder: Path | None = None
    as_before, warnings.formatwarning = warnings.formatwarning, _told
    try:
        asked = read(sys.argv if argv is None else argv)
        if asked is None:
            return DONE
        folder = asked.workdir
        opening.all_devices(multihost=asked.multihost)
        display = Display()
        try:
            run(asked, display)
        except Stopped as stopped:
            display.say(str(stopped))
    except Diverged as diverged:
        return _failed(str(diverged), DIVERGED)
    except ConfigError as error:
        return _failed(str(error), BAD_INPUT)
    except OSError as error:
        return _failed(_disk(error, folder), BAD_INPUT)
    except KeyboardInterrupt:
        return _failed("interrupted; the same command goes on", INTERRUPTED)
    finally:
        warnings.formatwarning = as_before
    return DONE


def _silence_libraries() -> None:
    """Orbax logs tracebacks of its own for what is answered here with one line."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _told(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of this program as one line; of others with the place that it comes from."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return f"warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _failed(text: str, code: int) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return code


def _disk(error: OSError, folder: Path | None) -> str:
    """What the system refused, where, and what can be done."""
    where = error.filename or folder
    what = error.strerror or str(error)
    todo = "Make room, or give" if error.errno in (errno.ENOSPC, errno.EDQUOT, None) else "Give"
    return f"{what}{f': {where}' if where else ''}; what was whole there is intact. {todo} another --workdir"


if __name__ == "__main__":
    sys.exit(main())
