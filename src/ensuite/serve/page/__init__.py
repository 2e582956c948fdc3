"""The pages a person looks at: try a model, compare runs, watch a training. In the service's own process, and
without asking any other host for anything."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path

from ensuite.errors import EnsuiteError

if not find_spec("nicegui"):
    raise EnsuiteError("the page needs NiceGUI, which is not installed: pip install 'ensuite[serve]'")

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from ensuite.serve.service import Service

__all__ = ["mount"]

PATHS = frozenset({"/", "/runs", "/run", "/training", "/key", "/favicon.ico"})
ASSETS = "/_nicegui"
"""What begins the paths of NiceGUI's own files and of its socket."""
logger = logging.getLogger(__name__)


def mount(app: FastAPI, service: Service, runs: Path | None) -> None:
    """Show the pages of a service at ``/``; once in a process, as NiceGUI has one application.

    They are loaded when the service has started, which they would keep from its first answers for most of a
    second; who asks for one before waits for it.

    Parameters
    ----------
    app
        The application of `ensuite.serve.http.build_app`; its key ring, if it has one, also guards the pages.
    service
        What it serves.
    runs
        A folder of runs to be compared and watched; None: the pages about runs say that there is none.
    """

    def build() -> FastAPI:
        from ensuite.serve.page.pages import build_pages

        return build_pages(service, app.state.keys, runs)

    pages = _Later(build)
    of_service = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with of_service(app):
            running = asyncio.create_task(pages.run())
            yield
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    app.router.lifespan_context = lifespan
    app.router.routes.append(_Pages("", pages))


class _Later:
    """An application that is built in a thread when `run` begins; requests wait for it."""

    def __init__(self, build: Callable[[], FastAPI]):
        self._build = build
        self._app: ASGIApp = PlainTextResponse("The pages cannot be shown; the service's log says why.", 503)
        self._tried = asyncio.Event()

    async def run(self) -> None:
        """Build the application and keep it alive until this is cancelled."""
        try:
            app = await asyncio.to_thread(self._load)
            async with app.router.lifespan_context(app):
                self._app = app
                self._tried.set()
                await asyncio.get_running_loop().create_future()  # never done
        except Exception:
            logger.exception("the pages cannot be shown")
            self._tried.set()

    def _load(self) -> FastAPI:
        app = self._build()
        gc.collect()
        gc.freeze()  # as when the service was loaded: no request waits for these objects
        return app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._tried.wait()
        await self._app(scope, receive, send)


class _Pages(Mount):
    """Takes the paths of the pages only: all others are the API's, with its own 404 and 405."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope.get("path", "")
        if path in PATHS or path.startswith(ASSETS):
            return super().matches(scope)
        return Match.NONE, {}
