"""Runs that may take the place of the one that serves: those of one folder, by name or when they are newer.

A name is looked up among the folders that are there; it never becomes a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensuite.errors import EnsuiteError, did_you_mean
from ensuite.serve.service import Service, weights_of
from ensuite.serve.store import StoreUnavailable
from ensuite.training.run import read_card

logger = logging.getLogger(__name__)
EVERY = 2.0
"""Seconds between two looks."""


@dataclass(frozen=True)
class RunFolder:
    """The folder that holds runs."""

    path: Path

    def names(self) -> list[str]:
        """Return the names of the runs that are there now, in alphabetical order."""
        return [path.name for path in self._runs()]

    def find(self, name: str) -> Path:
        """Return the folder of a run.

        Raises
        ------
        EnsuiteError
            When there is none of this name.
        """
        for path in self._runs():
            if path.name == name:
                return path
        names = self.names()
        raise EnsuiteError(f"no run '{name}'; {did_you_mean(name, names)}" if names else "there are no runs")

    def newest(self, system: str) -> Path | None:
        """Return the finished run of a system whose weights are the newest; None: there is none."""
        fit = [path for path in self._runs() if is_finished(path, system) and weights_of(path)]
        return max(fit, key=lambda path: weights_of(path) or (), default=None)

    def _runs(self) -> Iterator[Path]:
        try:
            found = sorted(self.path.iterdir())
        except OSError as error:
            raise EnsuiteError(f"{self.path}: cannot be read: {error.strerror}") from None
        return (path for path in found if (path / "card.json").is_file())


def is_finished(path: Path, system: str) -> bool:
    """Whether a run is one of ``system`` whose training came to its end."""
    try:
        card: dict[str, Any] = read_card(path)
    except EnsuiteError:
        return False
    ended = card.get("training", {}).get("ended", "stopped by SIG")
    return card.get("model") == system and not ended.startswith("stopped by SIG")


async def watch(service: Service, runs: RunFolder | None, *, swap: bool = True, every: float = EVERY) -> None:
    """Take items that other processes put into the store; with ``swap``, also newer weights of the run that
    serves, and newer finished runs of the same system in ``runs``. Ends when it is cancelled.

    What is refused is tried again only when it has changed. A file must look the same at two looks in a row,
    so that one that is being copied is left alone.
    """
    tried = seen = None
    while True:
        await asyncio.sleep(every)
        try:
            await service.refresh_items()
        except StoreUnavailable as error:
            logger.warning("new items of other processes cannot be read: %s", error)
        if not swap:
            continue
        path = await asyncio.to_thread(_newer, service, runs)
        found = None if path is None else (path, weights_of(path))
        if path is not None and found == seen != tried:
            tried = found
            with contextlib.suppress(EnsuiteError):  # `swap` has said so in the log
                await service.swap(path)
        seen = found


def _newer(service: Service, runs: RunFolder | None) -> Path | None:
    """Return the run that should serve instead; None: the one that does."""
    loaded = service.loaded
    system = loaded.run.config.name
    try:
        newest = None if runs is None else runs.newest(system)
    except EnsuiteError as error:
        logger.warning("the folder of runs cannot be read: %s", error)
        newest = None
    if newest is not None and (weights_of(newest) or (0, 0)) > loaded.weights:
        return newest
    path = loaded.run.path
    return path if weights_of(path) not in (None, loaded.weights) and is_finished(path, system) else None
