"""Calls to a service in this process, and what its errors look like."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import httpx

from ensuite.serve.asking import Given
from ensuite.serve.http import build_app
from ensuite.serve.service import Service


class Caller:
    """A service in this process, called as over HTTP, and the event loop that it lives in."""

    def __init__(self, service: Service, runner: asyncio.Runner, **options: Any):
        self.service, self.runner = service, runner
        self.app = build_app(service, **options)
        self.headers = {"Host": "localhost"}

    def __call__(self, method: str, url: str, json: Any = None, **more: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            async with self.client() as client:
                return await client.request(method, url, **({} if json is None else {"json": json}), **more)

        return self.run(call())

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=self.headers)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def recommend(self, **body: Any) -> dict[str, Any]:
        answer = self("POST", "/v1/recommend", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def happened(self, user: Any, *items: Any, start: int = 1_000) -> None:
        events = [{"user_id": user, "item_id": item, "time": start + n} for n, item in enumerate(items)]
        assert self("POST", "/v1/events", {"events": events}).status_code == 200


def error_of(answer: httpx.Response) -> tuple[int, str | None, str]:
    """Return status, field and message of an error, which has the one shape."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "field"}
    return answer.status_code, body["error"]["field"], body["error"]["message"]


def given(*items: Any) -> list[Given]:
    """Return a history of items without times."""
    return [Given(item) for item in items]
