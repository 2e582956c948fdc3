"""How much a caller may send, in what form, and under which name the service may be called."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ensuite.serve.http.errors import Problem, respond

BODY = 2 << 20
"""Bytes of a request's body."""
K = 1_000
"""Items of an answer."""
HISTORY = 5_000
"""Events of a request's history."""
CANDIDATES = 10_000
"""Candidates, or items to exclude."""
REQUESTS = 256
"""Requests of one call of `/v1/recommend`."""
EVENTS = 1_000
"""Events of one call of `/v1/events`."""
ITEMS = 1_000
"""Items of one call of `/v1/items`."""
DEPTH = 16
"""Levels of an event's context, or an item's attributes."""
AHEAD = 86_400
"""Seconds that a sender's clock may be ahead of ours."""
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})


class StrictRequest(Request):
    """A request whose JSON is read strictly: what the standard does not allow, or leaves open, is refused."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = read_json(await self.body())
        return self._json


class StrictRoute(APIRoute):
    """A route whose handler gets a `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return handle


def read_json(body: bytes) -> Any:
    """Read JSON as the standard has it: no NaN, no Infinity, no number beyond them, no key twice.

    Raises
    ------
    Problem
        400, saying what is wrong.
    """
    try:
        text = body.decode()
        return json.loads(text, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite)
    except Problem:
        raise
    except RecursionError:
        raise _malformed("nested too deeply") from None
    except ValueError as error:
        raise _malformed(f"not JSON: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _malformed(f"the key {twice[:100]!r} stands twice in one object")
    return read


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _malformed(f"{text[:20]} is no number of JSON")
    return value


def _malformed(message: str) -> Problem:
    return Problem(400, "malformed_json", message, "body")


class Bodies:
    """ASGI middleware: requests to `/v1/` bring JSON, and not too much of it.

    A browser sends JSON to another origin only after asking (CORS), so that no foreign page can write here.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if scope["method"] in ("POST", "PUT") and kind != b"application/json":
            problem = Problem(415, "not_json", "send JSON, with Content-Type: application/json", "body")
            await respond(problem)(scope, receive, send)
            return
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > BODY:
            await respond(_too_large())(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > BODY:  # sent in chunks, without a length
                raise _too_large()
            return message

        await self.app(scope, counted, send)


def _too_large() -> Problem:
    return Problem(413, "too_large", f"a body has at most {BODY:,} bytes; send less at a time", "body")


class LocalNames:
    """ASGI middleware for a service without keys: it answers to the names of this machine's loopback only, so
    that a web page whose name was made to point here (DNS rebinding) cannot read it."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
            name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
            if name not in LOCAL:
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                    return
                message = "without API keys this service is called as localhost or 127.0.0.1 only"
                await respond(Problem(421, "wrong_host", message))(scope, receive, send)
                return
        await self.app(scope, receive, send)
