"""What stands at which address: the application of all pages."""

from __future__ import annotations

import warnings
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from nicegui import ui

from ensuite.serve.http.keys import KeyRing
from ensuite.serve.page.backend import Backend
from ensuite.serve.page.comparing import Comparisons
from ensuite.serve.page.door import Door, token_of
from ensuite.serve.page.run import show_run
from ensuite.serve.page.runs import Runs
from ensuite.serve.page.theme import FAVICON
from ensuite.serve.page.training import Training
from ensuite.serve.page.try_it import TryIt
from ensuite.serve.service import Service

EVERY = 1.0
"""Seconds between two looks whether a reader's key is still valid."""


def build_pages(service: Service, keys: KeyRing | None, runs: Path | None) -> FastAPI:
    """Build the application of the pages; the parameters are those of `ensuite.serve.page.mount`."""
    app = FastAPI(openapi_url=None)
    backend, comparisons = Backend(service, runs), Comparisons()
    door = Door(keys)
    door.open_on(app)

    async def stop(request: Request) -> Response | None:
        """Return the form for a key, or None for a reader who may look; the page ends when they no longer
        may."""
        if (form := await door.stop(request)) is not None:
            return form
        client, token = ui.context.client, token_of(request)

        async def look() -> None:
            if "read" not in await door.scopes(token):
                client.run_javascript("location.reload()")
                client.content.clear()  # a browser that stays gets no answer

        if keys is not None:
            ui.timer(EVERY, look)
        return None

    @ui.page("/")
    async def _try_it(request: Request, beside: str = "") -> Response | None:
        if (form := await stop(request)) is not None:
            return form
        token = token_of(request)
        TryIt(backend, lambda: door.scopes(token), await door.scopes(token), beside)
        return None

    @ui.page("/runs")
    async def _runs(request: Request) -> Response | None:
        if (form := await stop(request)) is not None:
            return form
        Runs(backend, comparisons)
        return None

    @ui.page("/run")
    async def _run(request: Request, name: str = "") -> Response | None:
        if (form := await stop(request)) is not None:
            return form
        show_run(backend, name)
        return None

    @ui.page("/training")
    async def _training(request: Request) -> Response | None:
        if (form := await stop(request)) is not None:
            return form
        Training(backend)
        return None

    # NiceGUI looks for its server among all objects of the process, those that PyTorch calls deprecated too.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"nicegui\.ui_run_with")
    ui.run_with(
        app,
        title="ensuite",
        favicon=FAVICON,
        language="en-GB",
        tailwind=False,
        dark=None,
        show_welcome_message=False,
    )
    return app
