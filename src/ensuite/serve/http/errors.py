"""Errors as JSON, `{"error": {"code", "message", "field"}}`: what is wrong, and nothing of the inside."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ensuite.errors import EnsuiteError
from ensuite.serve.asking import NoAnswer
from ensuite.serve.requests import BadRequest
from ensuite.serve.store import StoreUnavailable

logger = logging.getLogger(__name__)

NO_ANSWER = {
    "unknown user": 404,
    "unknown items": 422,
    "model failed": 503,
    "store unavailable": 503,
    "timeout": 504,
}
"""HTTP status of a request that wants no fallback list."""
STORE_IS_DOWN = "the event store cannot be reached, or cannot write; nothing is acknowledged, send it again"


class Problem(HTTPException):
    """An error with a code of ours."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(status, message, headers)
        self.code, self.field = code, field


def to_problem(error: EnsuiteError) -> Problem:
    """Return what a caller is told of an error of the service."""
    if isinstance(error, BadRequest):
        return Problem(422, "invalid", str(error), error.field)
    if isinstance(error, NoAnswer):
        return Problem(NO_ANSWER[error.reason], error.reason.replace(" ", "_"), str(error))
    if isinstance(error, StoreUnavailable):  # its own words name the database
        return Problem(503, "store_unavailable", STORE_IS_DOWN, headers={"Retry-After": "1"})
    return Problem(409, "conflict", str(error))


def error_body(problem: Problem) -> dict[str, Any]:
    """Return the JSON of an error."""
    return {"error": {"code": problem.code, "message": problem.detail, "field": problem.field}}


def respond(problem: Problem) -> JSONResponse:
    """Return the response of an error."""
    return JSONResponse(error_body(problem), problem.status_code, headers=problem.headers)


def add_handlers(app: FastAPI) -> None:
    """Have every error of ``app`` answered in the one shape."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, EnsuiteError)
        return respond(to_problem(error))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if isinstance(error, Problem):
            return respond(error)
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        headers = None if error.headers is None else dict(error.headers)
        return respond(Problem(error.status_code, code, error.detail, headers=headers))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        return respond(Problem(422, "invalid", message, name_field(first["loc"])))

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return respond(Problem(500, "internal", "the service failed; its log says more"))

    app.add_exception_handler(EnsuiteError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)


def name_field(location: tuple[Any, ...]) -> str:
    """Return the name of a field in the caller's own terms: ``requests.0.history.2.time``.

    >>> name_field(("body", "<many>", "requests", 0, "k"))
    'requests.0.k'
    """
    inside = location[1:] if len(location) > 1 and location[0] in ("body", "query", "path") else location
    return ".".join(str(part) for part in inside if not str(part).startswith("<")) or "body"
