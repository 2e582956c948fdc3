"""What a training shows on the terminal: a bar with loss, rate and time left, and a line for each
validation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display:
    """A progress bar on standard error, each line begun with ``name``; with ``shown=False`` it does
    nothing."""

    def __init__(self, shown: bool, name: str = ""):
        self.console = Console(stderr=True)
        self.shown, self.name = shown, name
        self.loss: float | None = None
        self._drawn = 0.0
        self._pending = 0
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not shown,
            transient=True,
            refresh_per_second=4,
        )

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show that something without known steps goes on."""
        task = self.progress.add_task(what, total=None, rate="", loss="-")
        yield
        self.progress.remove_task(task)

    @contextmanager
    def stages(self) -> Iterator[News]:
        """Show what comes before the epochs, stage by stage."""
        with self:
            yield News(self)
        for task in self.progress.task_ids:
            self.progress.remove_task(task)

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Begin a new bar: one for each epoch, `done` of its `steps` were done before an interruption."""
        for task in self.progress.task_ids:
            self.progress.remove_task(task)
        self.progress.add_task(
            f"{self.name}epoch {epoch + 1}/{epochs}", total=steps, completed=done, rate="", loss="-"
        )
        self._began, self._steps = time.perf_counter(), 0

    def advance(self, loss: float) -> None:
        """Count one step; the screen is written at most four times a second."""
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        self._pending += 1
        self._steps += 1
        now = time.perf_counter()
        if self.shown and now - self._drawn > 0.25:
            rate = f"{self._steps / (now - self._began):.1f} steps/s"
            self.progress.update(
                self.progress.task_ids[0], advance=self._pending, rate=rate, loss=f"{self.loss:.4f}"
            )
            self._drawn, self._pending = now, 0

    def validated(self, epoch: int, metrics: Mapping[str, float], chosen: str, best: bool) -> None:
        """Print one line with the loss and the validation metrics."""
        if self.shown:
            values = "  ".join(
                f"{name} [{'bold ' if name == chosen else ''}cyan]{value:.4f}[/]"
                for name, value in metrics.items()
            )
            loss = "" if self.loss is None else f"loss {self.loss:.4f}  "
            self.console.print(
                f"{self.name}epoch {epoch:>3}  {loss}validation {values}{'  [green]best[/]' if best else ''}",
                highlight=False,
                soft_wrap=True,
            )

    def finished(self, why: str, epochs: int, best_epoch: int, seconds: float) -> None:
        """Say why training ended and which weights were kept."""
        if self.shown and epochs:
            self.console.print(
                f"{self.name}{why} after {epochs} epochs, {seconds:,.0f} s; "
                f"weights of epoch {best_epoch} kept",
                highlight=False,
                soft_wrap=True,
            )


class News:
    """Shows the newest of several stages as the display's one bar."""

    def __init__(self, display: Display):
        self.display, self.stage = display, ""

    def update(self, name: str, done: int, total: int | None, loss: float | None = None) -> None:
        """Take news of the stage ``name``; a new name replaces the stage before."""
        progress = self.display.progress
        if name != self.stage:
            for task in progress.task_ids:
                progress.remove_task(task)
            progress.add_task(f"{self.display.name}{name}", total=total, rate="", loss="-")
            self.stage = name
        value = "-" if loss is None else f"{loss:.4g}"
        progress.update(progress.task_ids[0], completed=done, total=total, loss=value)

    def busy(self, what: str) -> None:
        """Show that something without known steps goes on."""
        self.update(what, 0, None)
