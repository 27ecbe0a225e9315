"""The command line.

    python -m jax_advtrain.main --config=configs/digits_ima.py
    python -m jax_advtrain.main --config=configs/digits_ima.py --mode=evaluate --config.eval.name=more

Bad input is answered with one line and exit code 2, before any work.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from jax_advtrain import config as configs
from jax_advtrain.config import ConfigError
from jax_advtrain.studies import beside, runs
from jax_advtrain.training.display import Display
from jax_advtrain.training.loop import Diverged, Stopped

MODES = ("train", "evaluate", "margins")

_FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.", flag_values=_FLAGS)
flags.DEFINE_enum(
    "mode",
    "train",
    MODES,
    "train: train, evaluate, draw; evaluate: a workdir's checkpoint again; margins: estimate every sample's margin.",
    flag_values=_FLAGS,
)
flags.DEFINE_string("workdir", None, "Where the run lies; default runs/<config name>.", flag_values=_FLAGS)
flags.DEFINE_bool("multihost", False, "Call jax.distributed.initialize first (one process a host).", flag_values=_FLAGS)


def config_path(given: str) -> Path:
    """A config file as given, or the one of that name which the package ships.

    Raises:
      ConfigError: no such file.
    """
    shipped = Path(__file__).parent / "configs"
    beside_package = Path(__file__).parent.parent / "configs"
    for path in (Path(given), *(folder / Path(given).name for folder in (shipped, beside_package))):
        if path.is_file():
            return path
    names = sorted(path.name for folder in (shipped, beside_package) for path in folder.glob("*_*.py"))
    raise ConfigError(f"--config={given}: no such file{configs.nearest(Path(given).name, names)}")


def read_flags(argv: list[str]) -> tuple[Any, str, Path]:
    """Config, mode and workdir from the command line.

    Raises:
      ConfigError: one line on what is wrong.
    """
    argv = list(argv)
    found = None
    for number, argument in enumerate(argv):
        if argument.startswith("--config="):
            found = config_path(argument.removeprefix("--config="))
            argv[number] = f"--config={found}"
    if found is None:
        raise ConfigError("--config is missing: give --config=configs/digits_ima.py or another file of configs/")
    config = _load(found)
    names = sorted(_names(config))
    for argument in argv[1:]:
        name = argument.split("=")[0].removeprefix("--config.")
        if argument.startswith("--config.") and name not in names:
            near = configs.nearest(name, names) or f"; fields: {', '.join(n for n in names if '.' not in n)}"
            raise ConfigError(f"--config.{name}: no such field{near}")
    before, sys.argv = sys.argv, argv
    try:
        rest = _FLAGS(argv)
    except (flags.Error, ValueError, TypeError, AttributeError, config_flags.UnsupportedOperationError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    finally:
        sys.argv = before
    if len(rest) > 1:
        raise ConfigError(f"{rest[1]!r} is no flag; write --config.field=value")
    folder = Path(_FLAGS.workdir) if _FLAGS.workdir else Path("runs") / found.stem
    return _CONFIG.value, _FLAGS.mode, folder


def _load(path: Path) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location("advtrain_config", path)
    try:
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = module.get_config()
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as a config: {type(error).__name__}: {error}") from None
    if not isinstance(found, ml_collections.ConfigDict):
        raise ConfigError(f"{path}: get_config() gives {type(found).__name__}, not a ConfigDict")
    return found


def _names(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        names.append(prefix + name)
        if isinstance(value, ml_collections.ConfigDict):
            names += _names(value, f"{prefix}{name}.")
    return names


def run(argv: list[str], display: Display) -> None:
    """One command line; raises what `main` turns into a line and an exit code."""
    config, mode, folder = read_flags(argv)
    if _FLAGS.multihost:
        jax.distributed.initialize()
    if mode == "evaluate":
        runs.evaluate_run(config, folder, display)
    elif mode == "margins":
        runs.survey_run(config, folder, display)
    else:
        runs.train_and_evaluate(config, folder, display)
        if config.beside:
            beside.train_beside(config, folder, display)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 done or stopped by a signal, 2 bad input, 1 diverged."""
    display = Display()
    try:
        run(sys.argv if argv is None else argv, display)
    except Stopped as stopped:
        display.say(str(stopped))
    except Diverged as diverged:
        print(f"error: {diverged}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {os.strerror(error.errno) if error.errno else error}{where}", file=sys.stderr)
        return 2
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
