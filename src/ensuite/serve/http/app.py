"""The application: endpoints, errors and middleware around one service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from ensuite import __version__
from ensuite.serve.http.counting import Counted
from ensuite.serve.http.errors import add_handlers
from ensuite.serve.http.keys import KeyRing
from ensuite.serve.http.limits import Bodies, LocalNames
from ensuite.serve.http.routes import router
from ensuite.serve.runs import RunFolder, watch
from ensuite.serve.service import Service

DESCRIPTION = """\
What comes next for a user: recommendations from stored and given events.

Times are ISO text or seconds since 1970. Ids are whole numbers or texts; 260 and "260" are the same item.
Errors are `{"error": {"code", "message", "field"}}`.
"""


def build_app(
    service: Service,
    *,
    require_keys: bool = False,
    origins: Sequence[str] = (),
    runs: RunFolder | None = None,
    watch_runs: bool = False,
) -> FastAPI:
    """Build the ASGI application of a service.

    Parameters
    ----------
    require_keys
        Whether callers need an API key of the store. Without, the application answers to the names of the
        loopback only (localhost, 127.0.0.1, [::1]).
    origins
        Origins whose pages may call it from a browser (CORS).
    runs
        Where `POST /v1/model` finds runs by name.
    watch_runs
        Whether newer weights are swapped in by themselves; see `ensuite.serve.runs.watch`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watcher = asyncio.create_task(watch(service, runs, swap=watch_runs))
        yield
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        service.close()

    app = FastAPIOffline(  # FastAPI, whose page of the API loads its script from here, not from another host
        redoc_url=None,
        static_url="/docs-files",
        title="ensuite",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.keys = KeyRing(service.store) if require_keys else None
    app.state.runs = runs
    add_handlers(app)
    app.include_router(router)
    app.add_middleware(Bodies)  # the last one added is the outermost
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )
    if not require_keys:
        app.add_middleware(LocalNames)
    app.add_middleware(Counted, metrics=service.metrics)
    return app
