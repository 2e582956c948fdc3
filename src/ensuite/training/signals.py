"""SIGTERM and Ctrl-C end a training at the next step boundary, with a checkpoint, instead of in the middle of
one."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import torch
from accelerate import Accelerator


class StopFlag:
    """Within this context the first SIGTERM or SIGINT sets a flag; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.name = ""
        self._old: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def is_set(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop: all of them must leave at the same step."""
        if accelerator.num_processes == 1:
            return bool(self.name)
        asked = torch.tensor(float(bool(self.name)), device=accelerator.device)
        stop = float(accelerator.reduce(asked, "sum")) > 0
        self.name = self.name or ("a signal to another process" if stop else "")
        return stop
