"""The original files of a set in a folder of downloads: plain, in a folder, or in a .tar.gz that is opened safely."""

import posixpath
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path


def find_files(
    folder: Path, needed: Sequence[str], optional: Sequence[str], archive: str, extract_to: Path
) -> dict[str, Path]:
    """Paths of the files, by name.

    Args:
      folder: where they lie, or a folder in it that holds them, or the archive.
      needed, optional: names of the files.
      archive: name of a .tar.gz that holds them, "" for none; only they are extracted.
      extract_to: where to.

    Raises:
      ValueError: a needed file is missing; the archive is damaged, or has a path that leaves its folder.
    """
    if not folder.is_dir():
        raise ValueError(f"--manual_dir={str(folder)!r} is no folder")
    wanted = [*needed, *optional]
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        found = {name: place / name for name in wanted if (place / name).is_file()}
        if all(name in found for name in needed):
            return found
    if archive and (folder / archive).is_file():
        found = _extract(folder / archive, wanted, extract_to)
        missing = [name for name in needed if name not in found]
        if missing:
            raise ValueError(f"{folder / archive} lacks {', '.join(missing)}")
        return found
    pickled = sorted(path.name for path in folder.glob("*python*")) if archive else []
    hint = f"; {pickled[0]} holds pickles, which are never loaded" if pickled else ""
    what = f"{archive}, or the files {', '.join(needed)}" if archive else ", ".join(needed)
    raise ValueError(f"{folder} lacks {what}{hint}")


def _extract(archive: Path, wanted: Sequence[str], extract_to: Path) -> dict[str, Path]:
    """Copies the wanted files out of an archive; all its members are looked at."""
    found: dict[str, Path] = {}
    extract_to.mkdir(parents=True)
    try:
        with tarfile.open(archive, "r|*") as members:
            for member in members:
                check_member(str(archive), member)
                name = posixpath.basename(member.name)
                content = members.extractfile(member) if member.isfile() and name in wanted else None
                if content is None:
                    continue
                if name in found:
                    raise ValueError(f"{archive} has {name} twice")
                found[name] = extract_to / name
                with content, found[name].open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{archive} is no whole .tar.gz ({error}); download it anew") from error
    return found


def check_member(archive: str, member: tarfile.TarInfo) -> None:
    """Raises ValueError where a member could end outside its folder. Links can lead anywhere, so there may be none."""
    path = member.name.replace("\\", "/")
    if path.startswith("/") or ".." in path.split("/") or ":" in path.split("/")[0]:
        raise ValueError(f"{archive} has a member {member.name!r}, which leaves its folder; it is not opened")
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"{archive} has a member {member.name!r} that is a link or device; it is not opened")
