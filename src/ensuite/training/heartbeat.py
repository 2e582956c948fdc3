"""What a training that runs tells others: a small file in its run folder, written at most once a second.

RUN/progress.json is there while the training runs, and goes when it is done. One that stays behind belongs to
a training that was killed (its process is gone), or that ended early (`stopped` says why).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ensuite.data.dataset import is_alive
from ensuite.errors import EnsuiteError
from ensuite.training.run import write_text

NAME = "progress.json"
EVERY = 1.0
"""Seconds between two writes."""
SILENT = 600.0
"""Seconds without a sign after which a process that is there is called silent: a validation or the work
between two epochs may take long."""

State = Literal["running", "silent", "interrupted", "stopped"]


class Heartbeat:
    """Writes the progress of one training; with ``shown=False`` (not the main process) it does nothing.

    Whatever goes wrong in writing is passed over: nobody's training ends because nobody could look at it.
    """

    def __init__(self, out: Path, shown: bool = True):
        self.path, self.shown = out / NAME, shown
        self.about: dict[str, Any] = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.time(),
            "epoch": 0,
            "epochs": 0,
            "step": 0,
            "steps": 0,
            "loss": None,
            "rate": None,
            "seconds_left": None,
            "stopped": None,
        }
        self._written = -EVERY
        self._done = 0

    def __enter__(self) -> Heartbeat:
        self._write()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.about["stopped"] = str(error) or type(error).__name__
            self._write()
        elif self.shown:
            self.path.unlink(missing_ok=True)

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Begin an epoch (from 0), ``done`` of its ``steps`` done before an interruption."""
        self.about |= {"epoch": epoch + 1, "epochs": epochs, "step": done, "steps": steps}
        self._epoch_began, self._done = time.perf_counter(), 0
        self._write()

    def advance(self, loss: float | None) -> None:
        """Count one step; ``loss`` is smoothed over steps, as the terminal shows it."""
        self._done += 1
        self.about["step"] += 1
        now = time.perf_counter()
        if now - self._written < EVERY:
            return
        rate = self._done / max(now - self._epoch_began, 1e-9)
        left = self.about["steps"] * (self.about["epochs"] - self.about["epoch"] + 1) - self.about["step"]
        self.about |= {"loss": loss, "rate": rate, "seconds_left": left / rate}
        self._write()

    def _write(self) -> None:
        if not self.shown:
            return
        self._written = time.perf_counter()
        with contextlib.suppress(EnsuiteError):
            write_text(self.path, json.dumps(self.about | {"at": time.time()}) + "\n")


@dataclass(frozen=True)
class Progress:
    """What a progress.json says, and whether its training still runs."""

    run: Path
    state: State
    age: float
    """Seconds since the last sign of it."""
    epoch: int
    """The current one, from 1; 0 before the first."""
    epochs: int
    step: int
    """Steps of the epoch that are done."""
    steps: int
    loss: float | None
    rate: float | None
    """Steps a second in this epoch."""
    seconds_left: float | None
    """Until the last epoch is done, validations not counted; training may stop earlier."""
    started: float
    """Seconds since 1970."""
    stopped: str | None
    """Why it ended before it was done: the error, or the signal."""


def read_progress(run: Path) -> Progress | None:
    """Return what the training of a run folder says, or None when none runs there (or the file is damaged:
    it is written anew within a second)."""
    try:
        said = json.loads((run / NAME).read_text())
        age = max(0.0, time.time() - float(said["at"]))
        fields = {name: said[name] for name in Progress.__dataclass_fields__ if name in said}
        return Progress(run=run, state=_state(said, age), age=age, **fields)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _state(said: dict[str, Any], age: float) -> State:
    if said["stopped"]:
        return "stopped"
    if said["host"] == socket.gethostname() and not is_alive(int(said["pid"])):
        return "interrupted"
    return "running" if age < SILENT else "silent"
