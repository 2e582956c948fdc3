"""Who may look: when the service asks its callers for API keys, the pages ask their readers for one too.

The key is given once, in a form. The browser keeps a random token in a cookie for as long as it is open, and
the service, in memory, which key that token stands for: it is looked up again, a revoked one opens nothing.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from html import escape
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from ensuite.serve.http.keys import KeyRing
from ensuite.serve.page.theme import HEAD, LOGO
from ensuite.serve.store import StoreUnavailable

PATH = "/key"
COOKIE = "ensuite"
KEPT = 1_000
"""Readers that are remembered; the one who came first is asked again."""
EVERYTHING = frozenset({"read", "write"})


class Door:
    """Remembers which browser gave which key. Without a key ring the door is open."""

    def __init__(self, ring: KeyRing | None):
        self.ring = ring
        self._given: OrderedDict[str, str] = OrderedDict()

    async def scopes(self, token: str) -> frozenset[str]:
        """Return what the reader of a cookie's token may do now."""
        if self.ring is None:
            return EVERYTHING
        secret = self._given.get(token)
        if secret is None:
            return frozenset()
        try:
            key = await self.ring.check(secret)
        except StoreUnavailable:
            return frozenset()
        return frozenset() if key is None else key.scopes

    async def stop(self, request: Request) -> Response | None:
        """Return the form that asks for a key, or None for a reader who may look."""
        if "read" in await self.scopes(token_of(request)):
            return None
        there = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return _form(there, "")

    def open_on(self, app: FastAPI) -> None:
        """Add the form's address to the app."""

        @app.post(PATH, include_in_schema=False)
        async def take(request: Request) -> Response:
            body = await request.body() if _short(request) else b""
            fields = parse_qs(body.decode("utf-8", "replace"))
            secret, there = (fields.get(name, [""])[0] for name in ("key", "to"))
            try:
                key = await self.ring.check(secret.strip()) if self.ring is not None else None
            except StoreUnavailable:
                return _form(there, "Keys cannot be looked up now; try again in a moment.")
            if key is None:
                return _form(there, "This key is unknown, or was revoked.")
            if "read" not in key.scopes:
                return _form(there, "This key may not read.")
            token = secrets.token_urlsafe(32)
            self._given[token] = secret.strip()
            if len(self._given) > KEPT:
                self._given.popitem(last=False)
            answer = RedirectResponse(_local(there), 303)
            secure = request.url.scheme == "https"
            answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure)
            return answer


def token_of(request: Request) -> str:
    """Return the token in a request's cookie, empty when there is none."""
    return request.cookies.get(COOKIE, "")


def _short(request: Request) -> bool:
    length = request.headers.get("content-length", "")
    return length.isdigit() and int(length) <= 4096


def _local(there: str) -> str:
    """Return a path of this service, whatever was asked for: nobody is sent to another host.

    >>> _local("/runs?name=a"), _local("//evil.example/x"), _local("https://evil.example")
    ('/runs?name=a', '/x', '/')
    """
    parts = urlsplit(there.replace("\\\\", "/"))
    path = "/" + parts.path.lstrip("/")
    return quote(path) + (f"?{parts.query}" if parts.query else "")


def _form(there: str, wrong: str) -> HTMLResponse:
    told = f'<p class="wrong" id="wrong" role="alert">{escape(wrong)}</p>' if wrong else ""
    said = ' aria-invalid="true" aria-describedby="wrong"' if wrong else ""
    return HTMLResponse(
        '<!doctype html><html lang="en-GB"><head><meta charset="utf-8"><title>Key · ensuite</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{HEAD}</head>'
        f'<body><main id="main" class="door"><section class="panel"><span class="brand">{LOGO} ensuite</span>'
        f'<h1>A key, please</h1><p class="hint">This service answers to holders of an API key. One that may '
        "read lets you look, one that may also write lets you record events.</p>"
        f'<form method="post" action="{PATH}"><label for="key">API key</label>'
        f'<input type="password" id="key" name="key" required autofocus '
        f'autocomplete="current-password"{said}>'
        f'{told}<input type="hidden" name="to" value="{escape(there, quote=True)}">'
        '<button class="primary" type="submit">Look</button></form></section></main></body></html>',
        status_code=401,
        headers={"Cache-Control": "no-store"},
    )
