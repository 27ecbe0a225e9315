"""Finding a prepared TFDS set on disk, and telling a whole one from a half-written one."""

import re
import shlex
from typing import Any

from jax_advtrain.data.originals import ORIGINALS

_NAME = re.compile(r"(?P<set>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def parse_name(name: str) -> re.Match[str]:
    """The parts `set`, `config`, `version` of a TFDS name; raises ValueError where it is none."""
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(f"data.name={name!r} is no TFDS name: write 'set', 'set/config' or 'set/config:1.0.0'")
    return match


def missing(name: str, data_dir: Any) -> str:
    """How to get the set, as the end of an error message."""
    bare = re.split("[:/]", name)[0]
    if bare == "digits":
        return "the next run with data.source='digits' prepares it"
    command = f"python -m jax_advtrain.data.prepare --name={shlex.quote(name)} --data_dir={shlex.quote(str(data_dir))}"
    files: tuple[str, ...] = ()
    if bare in ORIGINALS:
        files = (ORIGINALS[bare].archive,) if ORIGINALS[bare].archive else ORIGINALS[bare].files
    else:
        command = f"pip install 'jax_advtrain[prepare]' && {command}"
    return f"prepare it with: {command}" + (f" --manual_dir=FOLDER, which holds {' and '.join(files)}" if files else "")


def find_folder(name: str, data_dir: Any) -> Any:
    """The folder `data_dir/set[/config]/version` of a whole set, the newest version where none is named.

    Args:
      name: "set", "set/config", with ":version" behind where wanted.
      data_dir: TFDS folder, "~" allowed.

    Returns:
      `epath.Path`.

    Raises:
      ValueError: bad name; nothing there; several configs; a half-written folder. Says where was looked and what to do.
    """
    from etils import epath

    match = parse_name(name)
    top = epath.Path(data_dir).expanduser()
    folder = top / match["set"] / match["config"] if match["config"] else top / match["set"]
    if not top.is_dir():
        raise ValueError(f"data.data_dir={str(top)!r} does not exist (looking for {name!r}); {missing(name, data_dir)}")
    if not folder.is_dir():
        have = ", ".join(sorted(path.name for path in top.iterdir() if path.is_dir())[:20]) or "nothing"
        raise ValueError(f"no {name!r} in {top} (looked for {folder}; there is: {have}); {missing(name, data_dir)}")
    if not match["config"] and not _versions(folder):
        configs = [path.name for path in folder.iterdir() if path.is_dir() and _versions(path)]
        if len(configs) > 1:
            choices = ", ".join(f"{match['set']}/{config}" for config in sorted(configs))
            raise ValueError(f"{name!r} in {top} has several configs: set data.name to one of {choices}")
        folder = folder / configs[0] if configs else folder
    versions = _versions(folder)
    if match["version"]:
        versions = [version for version in versions if version == match["version"]]
    if not versions:
        broken = any(path.name.startswith("incomplete.") for path in folder.iterdir())
        what = f"only an unfinished preparation of {name!r}" if broken else f"no version of {name!r}"
        raise ValueError(f"{what} in {folder} (looked for {match['version'] or 'N.N.N'}); {missing(name, data_dir)}")
    found = folder / versions[-1]
    for file in ("dataset_info.json", "features.json"):
        if not (found / file).exists():
            raise ValueError(f"{found} is half-written ({file} is missing): delete it; {missing(name, data_dir)}")
    return found


def check_shards(split_info: Any, split: str, how_to_prepare: str) -> None:
    """Raises ValueError where a shard of the split (a TFDS SplitInfo) is missing or cut short, or lacks records."""
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    for instruction in split_info.file_instructions:
        path = str(instruction.filename)
        try:
            reader = array_record_module.ArrayRecordReader(path)
            count, problem = reader.num_records(), ""
            reader.close()
        except (RuntimeError, OSError) as error:
            count, problem = 0, str(error).splitlines()[0]
        if count != instruction.examples_in_shard:
            what = problem or f"{count} records instead of {instruction.examples_in_shard}"
            raise ValueError(
                f"split {split!r}: {path} is missing or half-written ({what}): delete its folder; {how_to_prepare}"
            )


def _versions(folder: Any) -> list[str]:
    """Names of version folders, oldest first."""
    names = [path.name for path in folder.iterdir() if path.is_dir() and _VERSION.fullmatch(path.name)]
    return sorted(names, key=lambda version: tuple(map(int, version.split("."))))
