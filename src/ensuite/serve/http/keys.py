"""API keys: who may read, who may write."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ensuite.serve.http.errors import Problem
from ensuite.serve.store import EventStore, Key, StoreUnavailable

FRESH = 5.0
"""Seconds for which a valid key is not looked up again: as long as a revoked one may go on."""
KEPT = 1_024
"""Keys that are remembered."""

bearer = HTTPBearer(
    auto_error=False,
    description="A key of `ensuite store keys add NAME --scope read write`. Needed when the service listens "
    "beyond this machine, or was started with --require-keys.",
)


class KeyRing:
    """Checks secrets against the store, which keeps their hashes only.

    While the store is down, keys that were valid when last looked up go on: recommendations then come from
    the fallback list, and somebody must be able to ask for them.
    """

    def __init__(self, store: EventStore):
        self._store = store
        self._known: OrderedDict[bytes, tuple[Key, float]] = OrderedDict()

    async def check(self, secret: str) -> Key | None:
        """Return the key of a secret; None: it is unknown or revoked."""
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        known = self._known.get(digest)
        if known is not None and time.monotonic() - known[1] < FRESH:
            return known[0]
        try:
            key = await asyncio.to_thread(self._store.check_key, secret)
        except StoreUnavailable:
            if known is None:
                raise
            return known[0]
        self._known.pop(digest, None)
        if key is not None:
            self._known[digest] = key, time.monotonic()
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        return key


def needs(scope: Literal["read", "write"]) -> Callable[..., Coroutine[Any, Any, None]]:
    """Return the dependency of a route that a key of ``scope`` opens."""

    async def check(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> None:
        ring: KeyRing | None = request.app.state.keys
        if ring is None:
            return
        challenge = {"WWW-Authenticate": "Bearer"}
        if credentials is None:
            message = "a key is needed: Authorization: Bearer KEY"
            raise Problem(401, "no_key", message, "Authorization", challenge)
        key = await ring.check(credentials.credentials)
        if key is None:
            raise Problem(401, "wrong_key", "the key is unknown or revoked", "Authorization", challenge)
        if scope not in key.scopes:
            message = f"the key has not the scope '{scope}'"
            raise Problem(403, "wrong_scope", message, "Authorization")

    return check
