"""From a command line to a config, a mode and a workdir."""

import ast
import contextlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

from jax_advtrain import config as configs
from jax_advtrain import models
from jax_advtrain.config import OPTIONAL
from jax_advtrain.errors import ConfigError
from jax_advtrain.training import workdir

MODES = {
    "train": "train, then evaluate and draw; started again it goes on, or says that all is done",
    "evaluate": "attack a checkpoint of a workdir again, into eval/<config.eval.name>",
    "margins": "estimate the margin of every sample of a split, into eval/<name>/margins.npz",
    "diagnose": "class by class: which are weak, where their images go, how sure that is, into diagnosis/; with "
    "--workdirs several runs beside each other",
    "homing": "train again without the class config.analysis.leave_out (or all), into homing/<class>, and see which "
    "images that were attacked into it can still be attacked",
    "equilibrium": "compare the margins of training with the distances that a minimum-norm attack finds",
    "correct": "fit a correction of the logits, one number a class, for the worst class under attack, into "
    "corrections/<config.correction.name>.json; evaluate it with --config.eval.correction=<that name>",
    "export": "write a checkpoint's weights as safetensors, into export/<config.eval.name>",
}
_USAGE = """Trains a classifier with IMA (per-sample margins) or another defense, attacks it, and draws the results.

  python -m jax_advtrain.main --config=configs/digits_ima.py
  python -m jax_advtrain.main --config=configs/digits_ima.py --config.epochs=60
  python -m jax_advtrain.main --mode=evaluate --workdir=runs/digits_ima \\
      --config.eval.name=strong --config.eval.attacks="pgd:num_steps=100:loss=lm:restarts=5"
  python -m jax_advtrain.main --mode=margins --workdir=runs/digits_ima --config.margins.norm=l2

Flags:
  --config=FILE         the experiment; a name alone is looked for in the configs below; a run's config.json makes that
                        run again. Only --mode=train needs it: the others take it from the --workdir of a run
  --config.FIELD=VALUE  another value of one of its fields; --config=FILE --help lists them
  --workdir=DIR         where the run lies (default runs/<config name>)
  --workdirs=A,B,...    of --mode=diagnose: runs to compare; then --workdir is where the comparison goes (default: the
                        folder comparison beside the first)
  --mode=MODE           {modes}
  --multihost           one of several processes, found by Slurm or the like, or by the environment:
                        JAX_COORDINATOR_ADDRESS=HOST:PORT of the first, JAX_NUM_PROCESSES, JAX_PROCESS_ID

Configs:
{shipped}
"""


class Asked(NamedTuple):
    """What a command line asks for."""

    config: ml_collections.ConfigDict
    mode: str
    workdir: Path
    multihost: bool
    workdirs: tuple[Path, ...] = ()


def read(argv: list[str]) -> Asked | None:
    """Reads a command line, the program's name first; prints the help and returns None where that is asked for.

    Raises:
      ConfigError: one line on what is wrong.
    """
    given, rest = _split(argv)
    wants_help = any(re.fullmatch(r"-{1,2}(help|helpfull|helpshort|h)", argument) for argument in argv[1:])
    if given is None and wants_help:
        print(_usage(), end="")
        return None
    path = None if given is None else _find(given)
    plain_flags = _flags()
    # Config flags are not defined yet, for the config may lie in the workdir.
    _parse(plain_flags, [argument for argument in rest if not _is_override(argument)], known_only=True)
    workdirs = _workdirs(plain_flags)
    config, folder = _config(path, plain_flags.mode, str(workdirs[0]) if workdirs else plain_flags.workdir)
    if workdirs:
        folder = Path(plain_flags.workdir or workdirs[0].parent / "comparison")
    if wants_help:
        print(f"{_usage()}\nFields of {path}:")
        for name, value in _fields(config):
            print(f"  --config.{name}={value!r}")
        return None
    all_flags = _flags()
    config = _overridden(config, rest, all_flags)
    return Asked(config, all_flags.mode, folder, all_flags.multihost, workdirs)


def read_grid(argv: list[str], modes: Mapping[str, str], usage: str) -> Asked | None:
    """Reads the command line of a comparison, as `read` does that of a run: its config file holds a grid.

    Args:
      modes: {name: what it does}, the default first. usage: printed where help is asked for; {modes} and {shipped} in
        it are filled in.
    """
    given, rest = _split(argv)
    if any(re.fullmatch(r"-{1,2}(help|helpfull|helpshort|h)", argument) for argument in argv[1:]):
        print(usage.format(modes=_modes(modes), shipped=_described(grids=True)), end="")
        return None
    if given is None:
        raise ConfigError("--config is missing: give --config=configs/compare_digits.py or another (--help lists them)")
    path = _find(given, grids=True)
    config = _load(path, grids=True)
    found = _flags(modes)
    config = _overridden(config, rest, found, base="base.")
    folder = Path(found.workdir) if found.workdir else Path("runs") / path.stem
    return Asked(config, found.mode, folder, found.multihost)


def read_config(given: str, *, grids: bool = False) -> ml_collections.ConfigDict:
    """The config of a file, or the grid of one, found as --config finds it."""
    return _load(_find(given, grids=grids), grids=grids)


def _overridden(
    config: ml_collections.ConfigDict, argv: list[str], found: flags.FlagValues, base: str = ""
) -> ml_collections.ConfigDict:
    """The config with the values of the command line, whose other flags go to `found`.

    Args:
      base: "base." where the config is a grid, whose runs' fields begin so.
    """
    _add_model_fields(config, argv, base)
    argv = _emptied(config, argv, base)
    _check_names(argv, config)
    holder = config_flags.DEFINE_config_dict("config", config, "", found, sys_argv=argv)
    left = _parse(found, argv)
    if len(left) > 1:
        raise ConfigError(f"{left[1]!r} is no flag; write --config.FIELD=VALUE (--help lists the flags)")
    return holder.value


def _add_model_fields(config: ml_collections.ConfigDict, argv: list[str], base: str) -> None:
    """A config holds those fields of its network that its file sets; here also those that the command line will set."""
    whole: Any = config
    pattern = rf"-{{1,2}}(?:no)?config\.{re.escape(base)}model\.(\w+)(?:=(.*))?"
    matches = [re.fullmatch(pattern, argument, re.DOTALL) for argument in argv[1:]]
    given = {match[1]: match[2] for match in matches if match}
    try:
        model = whole.base.model if base else whole.model
        known = models.field_names(given.get("name") or model.name)
    except (ValueError, AttributeError):  # the check of the whole config says what is wrong
        return
    with config.unlocked():
        for field in given:
            if field in known and field not in model:
                model[field] = config_dict.placeholder(object)


def _emptied(config: ml_collections.ConfigDict, argv: list[str], base: str) -> list[str]:
    """The arguments without those that set an optional field to None, which the config then holds: to its flag None is
    no number."""
    left: list[str] = []
    names = dict(_fields(config))
    for argument in argv:
        match = re.fullmatch(rf"-{{1,2}}config\.({re.escape(base)}([\w.]+))=None", argument)
        if match is None or match[2] not in OPTIONAL or match[1] not in names:
            left.append(argument)
            continue
        left = [one for one in left if re.match(rf"-{{1,2}}config\.{re.escape(match[1])}=", one) is None]
        with config.ignore_type():
            config.update_from_flattened_dict({match[1]: None})
    return left


def _flags(modes: Mapping[str, str] = MODES) -> flags.FlagValues:
    found = flags.FlagValues()
    flags.DEFINE_enum("mode", next(iter(modes)), list(modes), "", flag_values=found)
    flags.DEFINE_string("workdir", None, "", flag_values=found)
    flags.DEFINE_list("workdirs", [], "", flag_values=found)
    flags.DEFINE_bool("multihost", False, "", flag_values=found)
    return found


def _workdirs(given: flags.FlagValues) -> tuple[Path, ...]:
    folders = tuple(Path(folder.strip()) for folder in given.workdirs if folder.strip())
    if folders and given.mode != "diagnose":
        raise ConfigError(f"--workdirs compares runs in --mode=diagnose; --mode={given.mode} takes one --workdir")
    return folders


def _parse(found: flags.FlagValues, argv: list[str], *, known_only: bool = False) -> list[str]:
    try:
        return found(argv, known_only=known_only)
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(_in_our_words(str(error))) from None


def _in_our_words(message: str) -> str:
    """Python's words for a text that is no number, made ours; of a fraction what it comes to."""
    message = re.sub(r"invalid literal for int\(\) with base 10: .*", "give a whole number", message)
    fraction = re.search(r"could not convert string to float: '([\d.]+) ?/ ?([\d.]+)'", message)
    hint = ""
    with contextlib.suppress(ValueError, ZeroDivisionError):
        hint = f": {float(fraction[1]) / float(fraction[2]):.4g}" if fraction else ""
    return re.sub(r"could not convert string to float: .*", f"give a number{hint}", message)


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of --config (the last one given), and all other arguments."""
    given, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        if re.fullmatch(r"-{1,2}config", argument):
            given = next(arguments, "")
        elif match := re.fullmatch(r"-{1,2}config=(.*)", argument, re.DOTALL):
            given = match[1]
        else:
            rest.append(argument)
    return given, rest


def _is_override(argument: str) -> bool:
    return re.match(r"-{1,2}(no)?config\.", argument) is not None


def _shipped(*, grids: bool = False) -> list[Path]:
    package = Path(__file__).parent
    found = [path for folder in (package / "configs", package.parent / "configs") for path in folder.glob("*_*.py")]
    return sorted(path for path in found if path.name.startswith("compare_") == grids)


def _find(given: str, *, grids: bool = False) -> Path:
    """A config file as given, or the one of that name which comes with the package."""
    shipped = {path.name: path for path in _shipped(grids=grids)}
    name = Path(given).name
    for path in (Path(given), shipped.get(name), shipped.get(f"{name}.py")):
        if path is not None and path.is_file():
            return path
    what = "a folder, not a config file" if Path(given).is_dir() else "no such file"
    raise ConfigError(f"--config={given}: {what}{configs.nearest(name, list(shipped))}")


def _load_kept(path: Path, *, grids: bool) -> ml_collections.ConfigDict:
    """The config of a run's config.json, or the grid of a comparison's comparison.json; nothing is executed."""
    try:
        kept = workdir.read_json(path)
        return configs.grid_from_plain(kept) if grids else configs.from_plain(kept)
    except (ConfigError, ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as a config: {error}") from None


def _config(path: Path | None, mode: str, folder: str | None) -> tuple[ml_collections.ConfigDict, Path]:
    """The config and the workdir; without a config file, the config that the workdir keeps."""
    if path is not None:
        return _load(path), Path(folder) if folder else Path("runs") / path.stem
    if mode == "train" or not folder:
        if mode != "train":
            raise ConfigError(f"--workdir is missing: --mode={mode} takes the --workdir=DIR of a run (or a --config)")
        raise ConfigError("--config is missing: give --config=configs/digits_ima.py or another (--help lists them)")
    try:
        there = workdir.read_config(Path(folder))
        if there is None:
            raise ConfigError(f"{folder} holds no run; give the --workdir of one, or --config")
        return configs.from_plain(there), Path(folder)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _load(path: Path, *, grids: bool = False) -> ml_collections.ConfigDict:
    if path.suffix == ".json":
        return _load_kept(path, grids=grids)
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
    if not grids and "base" in found and "methods" in found:
        raise ConfigError(f"{path} holds a grid of runs: python -m jax_advtrain.compare --config={path} trains it")
    return found


def _fields(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of the fields that are no sections."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check_names(argv: list[str], config: ml_collections.ConfigDict) -> None:
    names = dict(_fields(config))
    for argument in argv[1:]:
        if not _is_override(argument):
            continue
        name = argument.partition("=")[0].partition(".")[2]
        if any(field.startswith(f"{name}.") for field in names):
            inside = ", ".join(field for field in names if field.startswith(f"{name}."))
            raise ConfigError(f"--config.{name} is a section; set one of its fields: {inside}")
        if name not in names:
            tops = ", ".join(dict.fromkeys(field.partition(".")[0] for field in names))
            raise ConfigError(
                f"--config.{name}: no such field{configs.nearest(name, list(names)) or f'; fields: {tops}'}"
            )


def _usage() -> str:
    return _USAGE.format(modes=_modes(MODES), shipped=_described())


def _modes(modes: Mapping[str, str]) -> str:
    return "\n                        ".join(f"{name}: {text}" for name, text in modes.items())


def _described(*, grids: bool = False) -> str:
    lines = []
    for path in _shipped(grids=grids):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        lines.append(f"  {path.name:<25}{text.partition(chr(10))[0]}")
    return "\n".join(dict.fromkeys(lines))
