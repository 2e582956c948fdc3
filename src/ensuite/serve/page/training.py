"""The page "Training": every training that runs in the folder of runs, seen by its heartbeat."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import quote

from nicegui import ui

from ensuite.evaluate.report import tables
from ensuite.serve.page.backend import Backend
from ensuite.serve.page.charts import curves
from ensuite.serve.page.components import Tag, frame, markup
from ensuite.serve.page.shelf import Shelved, read_shelf
from ensuite.training.heartbeat import Progress

EVERY = 1.0
ORDER = {"running": 0, "silent": 1, "stopped": 2, "interrupted": 2}


class Training:
    """Looks at the folder once a second."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self.shown: dict[str, Watched] = {}
        with frame("/training", "Training", backend.run.name):
            Tag("h1", "", "Training")
            self.lead = Tag("p", "lead", role="status")
            self.out = Tag("div", "watched")
            self.nothing = Tag("section", "panel", hidden=True)
            with self.nothing, Tag("div", "empty"):
                Tag("p", "big", "No training runs now.")
                Tag("p", "", "One that writes into the folder of runs appears here by itself:")
                Tag(
                    "code", "command", f"ensuite train sasrec --data DATA --out {backend.runs or 'RUNS'}/NAME"
                )
        ui.timer(EVERY, self._look, immediate=True)

    async def _look(self) -> None:
        folder = self.backend.runs
        runs = [] if folder is None else await asyncio.to_thread(read_shelf, folder)
        now = {run.name: run for run in runs if run.progress is not None}
        order = sorted(
            now, key=lambda name: (ORDER[_progress(now[name]).state], -_progress(now[name]).started)
        )
        if order != list(self.shown):
            self.out.clear()
            with self.out:
                self.shown = {name: Watched() for name in order}
        for name in order:
            self.shown[name].show(now[name])
        running = sum(_progress(run).state == "running" for run in now.values())
        over = len(now) - running
        said = [f"{running} running"] if running else []
        said += [f"{over} that ended before {'it was' if over == 1 else 'they were'} done"] if over else []
        self.lead.text = ", ".join(said)
        self.nothing.set(hidden=bool(now))


class Watched:
    """One training."""

    def __init__(self) -> None:
        self.lines = -1
        self.state = ""
        with Tag("section", "panel training") as self.panel:
            with Tag("div", "title"):
                with Tag("div"):
                    self.name = Tag("a", "run")
                    self.about = Tag("span", "hint")
                self.badge = Tag("span", "pill")
            self.bar = Tag(
                "span",
                "bar",
                role="progressbar",
                aria_label="Progress",
                aria_valuemin="0",
                aria_valuemax="100",
            )
            self.facts = Tag("dl", "facts")
            self.said = Tag("div")
            self.charts = Tag("div", "report")

    def show(self, run: Shelved) -> None:
        """Bring what is shown up to date."""
        progress = _progress(run)
        self.name.text = run.name
        self.name.set(href=f"/run?name={quote(run.name)}")
        self.about.text = f"{run.card['model']} on {run.card['data']['name']}"
        share, running = _share(progress), progress.state == "running"
        self.bar.style(replace=f"--part: {share:.4f}")
        self.bar.set(aria_valuenow=str(round(100 * share)))
        facts = [
            ("epoch", f"{progress.epoch} of {progress.epochs}" if progress.epochs else "counting"),
            ("step", f"{progress.step:,} of {progress.steps:,}" if progress.steps else "–"),
            ("loss", "–" if progress.loss is None else f"{progress.loss:.4f}"),
            ("rate", "–" if progress.rate is None else f"{progress.rate:,.1f} steps/s"),
            ("left", _duration(progress.seconds_left) if running else "–"),
            ("elapsed", _duration(time.time() - progress.started - (0 if running else progress.age))),
        ]
        self.facts.clear()
        with self.facts:
            for key, value in facts:
                with Tag("div"):
                    Tag("dt", "", key)
                    Tag("dd", "", value)
        if progress.state != self.state:
            self._state(run, progress)
        if len(run.history) != self.lines:
            self.lines = len(run.history)
            self.charts.clear()
            with self.charts:
                markup(f'<div class="grid">{"".join(curves(run))}</div>')

    def _state(self, run: Shelved, progress: Progress) -> None:
        self.state = progress.state
        self.badge.text = progress.state
        self.badge.classes(replace={"running": "pill live", "silent": "pill"}.get(progress.state, "pill bad"))
        self.said.clear()
        if progress.state == "running":
            return
        with self.said, Tag("div", "warning"):
            if progress.state == "silent":
                Tag("p", "", f"No sign for {_duration(progress.age)}, but its process is there: it may hang.")
                return
            why = progress.stopped or "Its process is gone: it was killed, or the machine went down."
            Tag("p", "", why)
            if (run.path / "last.safetensors").exists():
                Tag("p", "", "Go on where it was saved last:")
                Tag("code", "command", run.resume())
            else:
                Tag("p", "", "There is no checkpoint yet to go on from: start it again with --overwrite.")


def _progress(run: Shelved) -> Progress:
    assert run.progress is not None
    return run.progress


def _rank(progress: Progress) -> tuple[int, float]:
    return ORDER[progress.state], -progress.started


def _share(progress: Progress) -> float:
    if not progress.epochs:
        return 0.0
    of_epoch = progress.step / progress.steps if progress.steps else 0.0
    return min(1.0, (max(0, progress.epoch - 1) + of_epoch) / progress.epochs)


def _duration(seconds: float | None) -> str:
    return "–" if seconds is None else tables.seconds(max(0.1, seconds))
