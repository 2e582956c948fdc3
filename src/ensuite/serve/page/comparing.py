"""Comparisons of runs, measured in a process of their own, and kept on disk under the fingerprints of the
weights: asked for again, they are there at once."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path

from ensuite.data.integrity import cache_folder, sha256
from ensuite.errors import EnsuiteError
from ensuite.serve.page.shelf import Shelved

logger = logging.getLogger(__name__)


@dataclass
class Job:
    """A comparison that is being measured."""

    file: Path
    """Where the result will stand."""
    total: int
    """Of runs."""
    run: str = ""
    """Which is measured now."""
    done: float = 0.0
    """Share of the whole, 0 to 1."""
    error: str = ""
    """Why there will be none."""
    over: bool = False


class Comparisons:
    """Measures and remembers; one job for each set of runs, whoever asks."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def find(self, runs: Sequence[Shelved]) -> str | None:
        """Return the finished comparison of these runs as HTML (`render_body`), None when it is not there."""
        try:
            return _file(_key(runs)).read_text(encoding="utf-8")
        except OSError:
            return None

    def job(self, runs: Sequence[Shelved]) -> Job | None:
        """Return the job for these runs, when one was begun since the service started."""
        return self._jobs.get(_key(runs))

    def start(self, runs: Sequence[Shelved]) -> Job:
        """Begin to measure these runs, on test; return the job, or the one that is under way."""
        key = _key(runs)
        job = self._jobs.get(key)
        if job is not None and not job.over:
            return job
        job = self._jobs[key] = Job(_file(key), len(runs))
        # A process of its own, that gives way: the service goes on answering meanwhile.
        here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=_measure,
            args=({run.name: run.path for run in runs}, job.file, there),
            daemon=True,
            name="ensuite-compare",
        )
        process.start()
        there.close()
        threading.Thread(target=_follow, args=(job, here), daemon=True, name="ensuite-compare").start()
        return job


def _follow(job: Job, pipe: Connection) -> None:
    seen: list[str] = []
    try:
        while True:
            kind, *said = pipe.recv()
            if kind == "error":
                job.error = said[0]
            else:
                job.run, done, total = said
                if job.run not in seen:
                    seen.append(job.run)
                job.done = (len(seen) - 1 + done / max(1, total)) / job.total
    except EOFError:
        if not job.error and job.done < 1.0:
            job.error = "the comparison ended before it was done; the service's log may say why"
        job.over = True


def _measure(paths: dict[str, Path], out: Path, pipe: Connection) -> None:
    """Compare runs and write the result aside, then rename it; tell ``pipe`` how far it is."""
    import torch

    from ensuite.evaluate.compare import compare
    from ensuite.evaluate.entries import as_entry
    from ensuite.evaluate.report.page import render_body
    from ensuite.training.run import load_run, write_text

    os.nice(10)
    torch.set_num_threads(1)
    try:
        runs = {name: load_run(path) for name, path in paths.items()}
        result = compare(
            [as_entry(run, name) for name, run in runs.items()],
            dataset=next(iter(runs.values())).dataset(),
            progress=lambda name, done, total: pipe.send(("progress", name, done, total)),
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, render_body(result))
    except EnsuiteError as error:
        pipe.send(("error", str(error)))
    except Exception:
        logger.exception("comparing %s", ", ".join(paths))
        pipe.send(("error", "something went wrong; the service's log says what"))


def _file(key: str) -> Path:
    return cache_folder() / "comparisons" / f"{key}.html"


def _key(runs: Sequence[Shelved]) -> str:
    """Return what changes whenever the comparison would."""
    from ensuite import __version__

    said = [(run.name, run.fingerprint, run.card, _weights(run.path)) for run in runs]
    return hashlib.sha256(json.dumps([__version__, said], sort_keys=True).encode()).hexdigest()[:32]


def _weights(path: Path) -> str:
    file = path / "model.safetensors"
    try:
        stat = file.stat()
        return _hash(file, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return ""  # deleted meanwhile: whoever loads it will say so


@lru_cache(maxsize=1024)
def _hash(file: Path, size: int, changed: int) -> str:
    return sha256(file)
