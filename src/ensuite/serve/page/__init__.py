"""The pages a person looks at: try a model, compare runs, watch a training. In the service's own process, and
without asking any other host for anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from nicegui import ui

from ensuite.serve.page.backend import Backend
from ensuite.serve.page.comparing import Comparisons
from ensuite.serve.page.run import show_run
from ensuite.serve.page.runs import Runs
from ensuite.serve.page.theme import FAVICON
from ensuite.serve.page.training import Training
from ensuite.serve.page.try_it import TryIt


def mount(app: FastAPI, service: Any, runs: Path | None) -> None:
    """Show the pages at ``/`` of an app that serves a model."""
    backend = Backend(service.recommender, service.store, service.run, runs)
    comparisons = Comparisons()

    @ui.page("/")
    def _try_it(beside: str = "") -> None:
        TryIt(backend, may_record=True, beside=beside)

    @ui.page("/runs")
    def _runs() -> None:
        Runs(backend, comparisons)

    @ui.page("/run")
    def _run(name: str = "") -> None:
        show_run(backend, name)

    @ui.page("/training")
    def _training() -> None:
        Training(backend)

    ui.run_with(
        app,
        title="ensuite",
        favicon=FAVICON,
        language="en-GB",
        tailwind=False,
        dark=None,
        show_welcome_message=False,
    )
