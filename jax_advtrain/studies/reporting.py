"""The report that every command ends with: what the workdir holds, read and drawn into one page. A page that fails is
told and loses nothing."""

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_advtrain import config as configs
from jax_advtrain.errors import ConfigError
from jax_advtrain.evaluation import results
from jax_advtrain.evaluation.classwise import files
from jax_advtrain.reports.page.comparison import write_comparison
from jax_advtrain.reports.page.comparison_of_runs import write_comparison_of_runs
from jax_advtrain.reports.page.gallery import GALLERY_NAME
from jax_advtrain.reports.page.render import REPORT_NAME
from jax_advtrain.reports.page.run import Holdings, settings, write_report
from jax_advtrain.reports.page.verdict import Evaluation
from jax_advtrain.studies import commands
from jax_advtrain.training import workdir
from jax_advtrain.training.display import Display
from jax_advtrain.training.monitor import monitored_radius

_FAILURE_NAME = "report-failure.txt"


def report_run(config: Any, folder: Path, display: Display) -> None:
    """Writes <folder>/report.html anew, of all that the workdir of a run holds, unless config.report says no."""
    _write(config, folder, display, lambda path: write_report(holdings(config, folder), path))


def report_grid(
    compared: Mapping[str, Any], config: Any, folder: Path, runs: Sequence[tuple[str, int, Path]], display: Display
) -> None:
    """Writes the page of a grid's comparison.

    Args:
      compared: content of comparison.json.
      config: of the grid's base.
      runs: (method, seed, workdir).
    """

    def write(path: Path) -> None:
        told = [{"method": method, "name": f"seed {seed}", **_link(place, folder)} for method, seed, place in runs]
        warnings = [f"{method}, seed {seed}: {line}" for method, seed, place in runs for line in _warnings(place)]
        write_comparison(
            compared,
            path,
            folder=str(folder),
            runs=told,
            commands=commands.of_grid(folder),
            settings=settings(compared["grid"]["base"], frozenset(_changed(compared["grid"]["base"]))),
            warnings=warnings,
        )

    _write(config, folder, display, write)


def report_comparison_of_runs(
    facts: Mapping[str, Any], config: Any, folder: Path, runs: Sequence[tuple[str, str, Path]], display: Display
) -> None:
    """Writes the page of several runs' diagnoses side by side.

    Args:
      facts: content of the comparison's classwise.json.
      runs: (method, name, workdir).
    """

    def write(path: Path) -> None:
        told = [{"method": method, "name": name, **_link(place, folder)} for method, name, place in runs]
        made = commands.of_comparison(
            [place for _, _, place in runs], folder, workdir.read_json(folder / "settings.json")
        )
        write_comparison_of_runs(facts, path, folder=str(folder), runs=told, commands=made)

    _write(config, folder, display, write)


def _write(config: Any, folder: Path, display: Display, write: Callable[[Path], object]) -> None:
    """Results are whole before a page is begun: what goes wrong with it is told, and the command ends as it would."""
    if not config.report.enabled or not workdir.is_writer():
        return
    path, failure = folder / REPORT_NAME, folder / _FAILURE_NAME
    try:
        write(path)
        failure.unlink(missing_ok=True)
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
        older = "; the one that is there is older than the results" if path.exists() else ""
        where = ""
        try:
            results.write_atomically(failure, lambda file: file.write(traceback.format_exc().encode()))
            where = f"; more in {failure}"
        except OSError:
            pass
        print(f"warning: {path} could not be written ({what}){older}; all results are whole{where}", file=sys.stderr)
        return
    display.say(f"report:  {path}")


def holdings(config: Any, folder: Path) -> Holdings:
    """Reads what the workdir of a run holds; what cannot be read is named and left out.

    Args:
      config: of this command: the radius of interest and config.report; all else is the workdir's own.
    """
    kept = workdir.read_config(folder) or configs.plain(config)
    own = configs.plain(configs.from_plain(kept))
    norm, epsilon = monitored_radius(config)
    unread: list[str] = []

    def attempt(read: Callable[[Path], Any], place: Path) -> Any:
        """What a reader makes of a folder, or None where it holds nothing of the kind or nothing whole."""
        try:
            return read(place)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
            unread.append(f"{place} could not be read, so it is not on this page: {' '.join(str(error).split())[:300]}")
            return None

    def all_of(read: Callable[[Path], Any], places: Sequence[Path], marker: str) -> list[Any]:
        found = [attempt(read, place) for place in places if (place / marker).exists()]
        return [one for one in found if one is not None]

    evaluated = _folders(folder / "eval")
    with_images = bool(config.report.images)
    boundary = folder / "plots" / "boundary.png"
    diagnosed = [place for place in _folders(folder) if place.name.startswith("diagnosis")]
    homed = [place for place in _folders(folder) if place.name.startswith("homing")]
    defense = own["defense"]
    held = Holdings(
        folder=str(folder),
        config=own,
        changed=frozenset(_changed(own)),
        data=workdir.read_fingerprints(folder) or {},
        norm=norm,
        epsilon=float(epsilon),
        ceiling=defense.get("eps_max", defense.get("d_max")),
        epochs=workdir.read_metrics(folder),
        evaluations=all_of(lambda place: _evaluation(place, with_images), evaluated, results.RESULTS_NAME),
        diagnoses=all_of(
            lambda place: (place.name, files.read(place), files.read_arrays(place)), diagnosed, files.FACTS_NAME
        ),
        surveys=all_of(lambda place: _study(place, "margins"), evaluated, "margins.json"),
        equilibria=all_of(lambda place: _study(place, "equilibrium"), evaluated, "equilibrium.json"),
        homings=all_of(lambda place: (place.name, files.read(place)), homed, files.FACTS_NAME),
        boundary=boundary.read_bytes() if with_images and boundary.exists() else None,
        unread=unread,
        shows_images=with_images,
        commands=[],
        missing=[],
    )
    return held._replace(commands=commands.of_run(held, folder), missing=commands.missing(held, folder))


def _folders(folder: Path) -> list[Path]:
    """The folders inside, by name: no hidden ones, and none of an earlier step that was moved aside."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and ".step-" not in p.name)


def _evaluation(place: Path, with_images: bool) -> Evaluation:
    gallery = None
    if with_images and (place / GALLERY_NAME).exists():
        gallery = _arrays(place / GALLERY_NAME)
    asked = place / "settings.json"
    found = results.read_results(place), results.read_per_sample(place)
    return Evaluation(place.name, *found, workdir.read_json(asked) if asked.exists() else {}, gallery)


def _study(place: Path, name: str) -> tuple[str, Any, dict[str, np.ndarray]]:
    return place.name, workdir.read_json(place / f"{name}.json"), _arrays(place / f"{name}.npz")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _changed(kept: Mapping[str, Any]) -> list[str]:
    """Dotted names of the fields that are not the defaults of their defense and network."""
    try:
        defaults = configs.plain(
            configs.base(kept["defense"]["name"], kept["model"]["name"], kept["classwise"]["name"])
        )
    except (KeyError, ConfigError):
        return []
    return [line.partition(" (")[0] for line in configs.differences(defaults, kept)]


def _link(place: Path, folder: Path) -> dict[str, Any]:
    """The way from a comparison's page to a run's own, where it has one."""
    page = place / REPORT_NAME
    relative = os.path.relpath(page.resolve(), folder.resolve())
    return {"link": Path(relative).as_posix() if page.exists() else None, "link_text": Path(relative).as_posix()}


def _warnings(place: Path) -> list[str]:
    """The warnings of the evaluations of one of a grid's runs."""
    found = [
        results.read_results(one)["warnings"]
        for one in _folders(place / "eval")
        if (one / results.RESULTS_NAME).exists()
    ]
    return [line for lines in found for line in lines]
