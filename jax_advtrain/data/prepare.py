"""Prepares a TFDS set for training: python -m jax_advtrain.data.prepare --name=NAME [--data_dir=DIR] [--manual_dir=DIR]

digits                        are made from scikit-learn; cifar100, svhn_cropped, stl10 and imagenet2012 from their
                              original files in --manual_dir; all five without TensorFlow.
any other set                 is prepared by TFDS itself, which needs TensorFlow: pip install 'jax_advtrain[prepare]'.

Sizes and manual steps are said before anything starts. What is prepared already is left as it is. Bad input is answered
with one line and exit code 2.
"""

import argparse
import contextlib
import difflib
import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

from jax_advtrain.data import digits, originals
from jax_advtrain.data.placing import ABANDONED_AFTER_SECONDS, place
from jax_advtrain.data.tfds_folder import find_folder, parse_name
from jax_advtrain.data.tfds_source import default_data_dir

DONE, BAD_INPUT = 0, 2


def prepare(name: str, data_dir: Path, manual_dir: Path | None) -> Path:
    """Prepares a set below `data_dir` unless it is there, and says what it does; returns its folder.

    Args:
      name: "set", "set/config", with ":version" behind where wanted.
      data_dir: TFDS folder.
      manual_dir: where files lie that the user downloaded.

    Raises:
      ValueError: one line: unknown set, missing files or TensorFlow, something else in the place.
    """
    parts = parse_name(name)
    bare, version = parts["set"], parts["version"]
    found = _prepared(name, data_dir)
    if isinstance(found, Path):
        print(f"{name} is already prepared: {found}")
        return found
    if bare == "digits":
        _refuse_remains(data_dir / "digits" / digits.VERSION, found)
        folder = digits.prepare(data_dir)
    elif bare in originals.ORIGINALS and (manual_dir is not None or not _has_tensorflow()):
        only = originals.ORIGINALS[bare].version
        if parts["config"] or version not in (None, only):
            raise ValueError(f"{bare} can be made from its original files as {bare}:{only} only, not as {name!r}")
        folder = _from_originals(bare, data_dir, manual_dir, found)
    else:
        folder = _with_tfds(name, data_dir, manual_dir, found)
    print(f"{name} is prepared: {folder}")
    return folder


def _prepared(name: str, data_dir: Path) -> Path | ValueError:
    """The folder of the set, or why there is none that could be used."""
    try:
        folder = Path(find_folder(name, data_dir))
    except ValueError as error:
        return error
    try:
        file_format = json.loads((folder / "dataset_info.json").read_text()).get("fileFormat")
    except (ValueError, AttributeError):
        raise ValueError(f"{folder} is damaged; move it away, or give another --data_dir") from None
    if file_format != "array_record":
        raise ValueError(
            f"{folder} is stored as {file_format}, not as array_record; move it away, or give another --data_dir"
        )
    return folder


def _from_originals(name: str, data_dir: Path, manual_dir: Path | None, problem: ValueError) -> Path:
    original = originals.ORIGINALS[name]
    more = f" (and {', '.join(original.optional)} if wanted)" if original.optional else ""
    what = original.archive or f"{', '.join(original.files)}{more}"
    print(f"{name} is made from {what}, {original.megabytes / 1000:.3g} GB, to be had at {original.url}")
    if manual_dir is None:
        raise ValueError(
            f"{name} needs --manual_dir, the folder that holds {what}; or pip install 'jax_advtrain[prepare]'"
        )
    _refuse_remains(data_dir / name / original.version, problem)
    return originals.prepare(name, data_dir, manual_dir)


def _with_tfds(name: str, data_dir: Path, manual_dir: Path | None, problem: ValueError) -> Path:
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir)
    size = sum(info.size for info in (builder.url_infos or {}).values())
    print(f"{name}: up to {size / 1e9:.3g} GB of downloads" if size else f"{name}: size of the downloads unknown")
    steps = " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
    if steps:
        print(f"by hand: {steps}")
    if not _has_tensorflow():
        raise ValueError(f"TFDS prepares {name} with TensorFlow: pip install 'jax_advtrain[prepare]'")
    if steps and manual_dir is None:
        raise ValueError(f"{name} needs files that you download by hand; give their folder as --manual_dir")
    final = Path(builder.data_dir)
    _refuse_remains(final, problem)
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir, try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
    )

    def write(workplace: Path) -> Path:
        there = _builder(f"{name.partition(':')[0]}:{builder.version}", workplace)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it names the temporary folder; its bars go to stderr
                there.download_and_prepare(download_dir=str(data_dir / "downloads"), download_config=config)
        except Exception as error:  # network, disk, checksums, Apache Beam: whatever a builder may raise
            reason = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(f"TFDS could not prepare {name}: {type(error).__name__}: {reason}") from error
        return Path(there.data_dir)

    place(final, write, name, ABANDONED_AFTER_SECONDS)
    return final


def _builder(name: str, data_dir: Path) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    try:
        return tfds.builder(name, data_dir=str(data_dir), file_format="array_record")
    except DatasetNotFoundError:
        known = [*tfds.list_builders(with_community_datasets=False), "digits"]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"TFDS has no set {name!r}: did you mean {nearest!r}?") from None
    except Exception as error:  # unknown configs and versions raise several kinds
        raise ValueError(f"TFDS cannot open {name!r}: {' '.join(str(error).split())}") from error


def _refuse_remains(final: Path, problem: ValueError) -> None:
    """Whatever lies where the set should go is the user's: it is not touched."""
    if final.exists():
        raise ValueError(
            f"{final} is in the way, and no whole set ({problem}); move it away, or give another --data_dir"
        )


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (--help says what there is)")


def main(argv: list[str] | None = None) -> int:
    """Runs a command line (by default the process's) and returns the exit code: 0, or 2 for bad input."""
    parser = _Parser(
        prog="python -m jax_advtrain.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--name", required=True, help="TFDS name: mnist, cifar100, set/config, set:1.0.0")
    parser.add_argument("--data_dir", default=None, help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    parser.add_argument("--manual_dir", default=None, help="folder of files that you downloaded")
    try:
        asked = parser.parse_args(argv)
        data_dir = Path(asked.data_dir or default_data_dir()).expanduser()
        prepare(asked.name, data_dir, Path(asked.manual_dir).expanduser() if asked.manual_dir else None)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-written is left in the place of the set", file=sys.stderr)
        return 130
    return DONE


if __name__ == "__main__":
    sys.exit(main())
