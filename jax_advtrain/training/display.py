"""What a person sees of a run: a live bar on a terminal, plain lines when piped, tensorboard events."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from jax_advtrain.evaluation.one_class import only_class
from jax_advtrain.evaluation.records import ClassCount
from jax_advtrain.training import workdir
from jax_advtrain.training.events import Events
from jax_advtrain.training.experiment import Experiment

# Piped, work that takes long says so this often.
_SECONDS_BETWEEN_LINES = 20.0


class Display:
    """Where messages go. A class because it holds the console that bar and lines share."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, quiet=not workdir.is_writer())

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False)

    @contextmanager
    def training(
        self, experiment: Experiment, lines: list[dict[str, Any]], folder: Path, step: int
    ) -> Iterator["TrainingDisplay"]:
        """Shows epochs and steps from `step` on."""
        with ExitStack() as stack:
            events = None
            if workdir.is_writer():
                events = stack.enter_context(closing(Events(folder / "events", first_step=step + 1)))
            bar = stack.enter_context(_bar(self.console))
            yield TrainingDisplay(self, bar, events, experiment, lines[-1] if lines else {}, step)

    @contextmanager
    def working(self, title: str) -> Iterator[Callable[[str, float], None]]:
        """Shows a share of work done; yields the function to tell it: (what is at work, share from 0 to 1)."""
        self.say(title)
        with _bar(self.console) as bar:
            task = bar.add_task("", total=1000, text="")
            said = time.monotonic()

            def tell(what: str, share: float) -> None:
                nonlocal said
                bar.update(task, completed=round(1000 * share), text=what)
                if not self.console.is_terminal and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                    said = time.monotonic()
                    self.say(f"{title}: {share:.0%}, {what}")

            yield tell

    def table(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        """Rows of text, the header first: a drawn table on a terminal, aligned columns when piped."""
        if not self.console.is_terminal:
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            self.say(title)
            for row in rows:
                cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
                self.say(f"  {'  '.join(cells)}".rstrip())
            return
        table = Table(title=title, title_justify="left")
        for name in rows[0]:
            table.add_column(name)
        for row in rows[1:]:
            table.add_row(*row)
        self.console.print(table)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        # Where the terminal is narrow, the text is cut and not the bar.
        TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        console=console,
        transient=True,
        expand=True,
        disable=not console.is_terminal,
    )


class TrainingDisplay:
    """The bar of one training; see `Display.training`."""

    def __init__(
        self,
        display: Display,
        bar: Progress,
        events: Events | None,
        experiment: Experiment,
        line: dict[str, Any],
        step: int,
    ) -> None:
        self._display, self._bar, self._events, self._experiment = display, bar, events, experiment
        self._task = bar.add_task("training", total=experiment.total_steps, completed=step, text="")
        self._live = _live(line)

    def step(self, epoch: int, loss: float) -> None:
        """One step is done."""
        text = " ".join([f"loss {loss:.3f}", *self._live.values()])
        self._bar.update(self._task, advance=1, description=f"epoch {epoch + 1}/{self._experiment.epochs}", text=text)

    def epoch(self, line: dict[str, Any]) -> None:
        """One epoch is done: its line is shown and becomes tensorboard scalars."""
        self._live |= _live(line)
        number = f"epoch {line['epoch']:>{len(str(self._experiment.epochs))}}/{self._experiment.epochs}"
        self._display.say(
            f"{number}  {line['seconds']:.1f} s  loss {line['train']['loss']:.4f}  {_summary(line)}"
            f"  {line['samples_per_second']:.0f} samples/s"
        )
        if self._events is not None:
            self._events.scalars(_scalars(line), line["step"])


def _scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of an epoch's line by tensorboard tag."""
    found = {"speed/samples_per_second": line["samples_per_second"], "speed/input_wait": line["input_wait"]}
    for group in ("train", "validation", "margins"):
        for name, value in line.get(group, {}).items():
            if isinstance(value, (int, float)):
                found[f"{group}/{name}"] = float(value)
    for quantile, value in line.get("margins", {}).get("quantiles", {}).items():
        found[f"margins/quantile_{quantile}"] = value
    return found


def _live(line: dict[str, Any]) -> dict[str, str]:
    """What an epoch's line tells, for the bar: in the few words that 80 columns have room for."""
    found = {}
    for group, name, what in (
        ("train", "clean_accuracy", "clean {:.0%}"),
        ("validation", "clean_accuracy", "clean {:.0%}"),
        ("validation", "robust_accuracy", "robust {:.0%}"),
        ("margins", "mean", "margin {:.3f}"),
    ):
        if name in line.get(group, {}):
            found[name] = what.format(line[group][name])
    return found


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
        what, name = ("Dice clean", "dice") if "clean_dice" in validation else ("clean", "accuracy")
        parts.append(f"{what} {validation[f'clean_{name}']:.3f}  robust {validation[f'robust_{name}']:.3f}")
        if (k := _only_class(validation)) is not None:
            parts.append(f"(class {k} alone is right)")
    if "margins" in line:
        parts.append(f"mean margin {line['margins']['mean']:.4f}")
        if line["margins"]["equilibrium"]:
            parts.append("(equilibrium)")
    return "  ".join(parts)


def _only_class(validation: dict[str, Any]) -> int | None:
    """The class whose clean samples are all right where no others are: a model that gives one class to everything."""
    counts = validation.get("per_class", {}).get("clean")
    return None if counts is None else only_class(list(map(ClassCount, counts["n"], counts["correct"])))
