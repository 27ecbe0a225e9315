"""What a person sees of a run: a live bar on a terminal, plain lines when piped, tensorboard events."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from jax_advtrain.training.experiment import Experiment


class Display:
    """Where messages go. A class because it holds the console that bar and lines share."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    @contextmanager
    def training(
        self, experiment: Experiment, lines: list[dict[str, Any]], folder: Path, step: int
    ) -> Iterator["TrainingDisplay"]:
        """Shows epochs and steps from `step` on."""
        with SummaryWriter(str(folder / "events"), purge_step=step + 1) as events, _bar(self.console) as bar:
            yield TrainingDisplay(self, bar, events, experiment, lines[-1] if lines else {}, step)

    @contextmanager
    def working(self, title: str) -> Iterator[Callable[[str, float], None]]:
        """Shows a share of work done; yields the function to tell it."""
        with _bar(self.console) as bar:
            task = bar.add_task(title, total=1000, text="")

            def tell(what: str, share: float) -> None:
                bar.update(task, completed=round(1000 * share), text=what)

            yield tell


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


class TrainingDisplay:
    """The bar of one training; see `Display.training`."""

    def __init__(self, display, bar, events, experiment: Experiment, line: dict[str, Any], step: int) -> None:
        self._display, self._bar, self._events, self._experiment = display, bar, events, experiment
        self._task = bar.add_task("training", total=experiment.total_steps, completed=step, text="")
        self._line = line

    def step(self, epoch: int, loss: float) -> None:
        """One step is done."""
        text = f"loss {loss:.3f}  {_summary(self._line)}"
        self._bar.update(self._task, advance=1, description=f"epoch {epoch + 1}/{self._experiment.epochs}", text=text)

    def epoch(self, line: dict[str, Any]) -> None:
        """One epoch is done: its line is shown and becomes tensorboard scalars."""
        self._line = line
        number = f"epoch {line['epoch']:>{len(str(self._experiment.epochs))}}/{self._experiment.epochs}"
        self._display.say(
            f"{number}  {line['seconds']:.1f} s  loss {line['train']['loss']:.4f}  {_summary(line)}"
            f"  {line['samples_per_second']:.0f} samples/s"
        )
        for group in ("train", "validation", "margins"):
            for name, value in line.get(group, {}).items():
                if isinstance(value, (int, float)):
                    self._events.add_scalar(f"{group}/{name}", float(value), line["step"])
        if "margins" in line:
            for quantile, value in line["margins"]["quantiles"].items():
                self._events.add_scalar(f"margins/quantile_{quantile}", value, line["step"])
        self._events.flush()


def _summary(line: dict[str, Any]) -> str:
    """Accuracies and margins of an epoch's line, in few words; what was not measured is left out."""
    parts = []
    validation = line.get("validation", {})
    train = line.get("train", {})
    if "clean_accuracy" in train:
        parts.append(f"train clean {train['clean_accuracy']:.3f}")
    if "attacked_accuracy" in train:
        parts.append(f"train attacked {train['attacked_accuracy']:.3f}")
    if validation:
        parts.append(f"clean {validation['clean_accuracy']:.3f}  robust {validation['robust_accuracy']:.3f}")
    if "margins" in line:
        parts.append(f"mean margin {line['margins']['mean']:.4f}")
        if line["margins"]["equilibrium"]:
            parts.append("(equilibrium)")
    return "  ".join(parts)
