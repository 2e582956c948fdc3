"""A folder of runs: which there are, what their cards and curves say, which share a catalogue."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ensuite.errors import EnsuiteError
from ensuite.evaluate.entries import Entry
from ensuite.training.heartbeat import Progress, read_progress
from ensuite.training.run import read_card
from ensuite.training.start import FIRST_STAGE

DEPTH = 4
"""How many folders deep runs are looked for."""


@dataclass(frozen=True)
class Shelved:
    """A run as its folder tells it, without its weights."""

    name: str
    """Its path below the folder of runs."""
    path: Path
    card: dict[str, Any]
    history: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    progress: Progress | None
    """What its training says, while it runs or when it ended early."""

    @property
    def fingerprint(self) -> str:
        """Of the dataset."""
        return str(self.card["data"]["fingerprint"])

    @property
    def ready(self) -> bool:
        """Whether there are weights to be served or measured."""
        return (self.path / "model.safetensors").exists()

    def entry(self) -> Entry:
        """Return it as a row of the report's charts; they read card and curve only."""
        return Entry(self.name, None, self.card, self.history)

    def resume(self) -> str:
        """Return the command that goes on with its training."""
        run = self.path.parent if self.path.name == FIRST_STAGE else self.path
        card = read_card(run)
        return f"ensuite train {card['model']} --data {card['data']['path']} --out {run} --resume"


def read_shelf(folder: Path) -> list[Shelved]:
    """Return the runs in a folder, by name; what is no run, or cannot be read, is not among them."""
    return [run for path in _run_folders(folder, DEPTH) if (run := _read(path, folder)) is not None]


def find_run(folder: Path, name: str) -> Shelved:
    """Return the run of that name; a name that is not on the shelf never reaches the file system.

    Raises
    ------
    EnsuiteError
        When there is none.
    """
    for run in read_shelf(folder):
        if run.name == name:
            return run
    raise EnsuiteError(f"no run '{name}' among those served here")


def same_catalogue(run: Shelved, item_ids: list[Any]) -> bool:
    """Whether a run knows the very items ``item_ids``, in the same rows."""
    if run.card["n_items"] != len(item_ids):
        return False
    try:
        ids = pl.read_parquet(run.path / "items.parquet", columns=["item_id"])["item_id"].to_list()
    except (OSError, pl.exceptions.PolarsError):
        return False
    return ids == item_ids


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    try:
        inside = sorted((entry for entry in os.scandir(folder) if entry.is_dir()), key=lambda e: e.name)
    except OSError:
        return
    if (folder / "card.json").exists() and (folder / "config.yaml").exists():
        yield folder
        inside = [entry for entry in inside if entry.name == FIRST_STAGE]
    for entry in inside:
        if depth and not entry.name.startswith("."):
            yield from _run_folders(Path(entry.path), depth - 1)


def _read(path: Path, folder: Path) -> Shelved | None:
    try:
        card = read_card(path)
        card["data"]["fingerprint"]
        lines = (path / "metrics.jsonl").read_text().splitlines() if (path / "metrics.jsonl").exists() else []
        history = [json.loads(line) for line in lines]
    except (EnsuiteError, OSError, ValueError, KeyError, TypeError):
        return None
    name = path.name if path == folder else path.relative_to(folder).as_posix()
    return Shelved(name, path, card, history, read_progress(path))
