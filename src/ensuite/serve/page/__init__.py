"""The pages a person looks at: try a model, compare runs, watch a training. In the service's own process, and
without asking any other host for anything."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

from ensuite.errors import EnsuiteError

if not find_spec("nicegui"):
    raise EnsuiteError("the page needs NiceGUI, which is not installed: pip install 'ensuite[serve]'")

from fastapi import FastAPI, Request
from fastapi.responses import Response
from nicegui import ui
from starlette.routing import Match, Mount
from starlette.types import Scope

from ensuite.serve.page.backend import Backend
from ensuite.serve.page.comparing import Comparisons
from ensuite.serve.page.door import Door, token_of
from ensuite.serve.page.run import show_run
from ensuite.serve.page.runs import Runs
from ensuite.serve.page.theme import FAVICON
from ensuite.serve.page.training import Training
from ensuite.serve.page.try_it import TryIt
from ensuite.serve.service import Service

__all__ = ["mount"]

PATHS = frozenset({"/", "/runs", "/run", "/training", "/favicon.ico"})
ASSETS = "/_nicegui"
"""What begins the paths of NiceGUI's own files and of its socket."""


def mount(app: FastAPI, service: Service, runs: Path | None) -> None:
    """Show the pages of a service at ``/``; once in a process, as NiceGUI has one application.

    Parameters
    ----------
    app
        The application of `ensuite.serve.http.build_app`; its key ring, if it has one, also guards the pages.
    service
        What it serves.
    runs
        A folder of runs to be compared and watched; None: the pages about runs say that there is none.
    """
    backend, comparisons = Backend(service, runs), Comparisons()
    door = Door(app.state.keys)
    door.open_on(app)

    @ui.page("/")
    async def _try_it(request: Request, beside: str = "") -> Response | None:
        if (stop := await door.stop(request)) is not None:
            return stop
        token = token_of(request)
        TryIt(backend, lambda: door.scopes(token), await door.scopes(token), beside)
        return None

    @ui.page("/runs")
    async def _runs(request: Request) -> Response | None:
        if (stop := await door.stop(request)) is not None:
            return stop
        Runs(backend, comparisons)
        return None

    @ui.page("/run")
    async def _run(request: Request, name: str = "") -> Response | None:
        if (stop := await door.stop(request)) is not None:
            return stop
        show_run(backend, name)
        return None

    @ui.page("/training")
    async def _training(request: Request) -> Response | None:
        if (stop := await door.stop(request)) is not None:
            return stop
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
    mounted = app.router.routes[-1]
    assert isinstance(mounted, Mount)
    app.router.routes[-1] = _Pages(mounted.path, mounted.app)


class _Pages(Mount):
    """Takes the paths of the pages only: all others are the API's, with its own 404 and 405."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope.get("path", "")
        if path in PATHS or path.startswith(ASSETS):
            return super().matches(scope)
        return Match.NONE, {}
