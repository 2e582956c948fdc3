"""The endpoints."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from ensuite.errors import EnsuiteError
from ensuite.serve.asking import Answer
from ensuite.serve.asking import Request as Asked
from ensuite.serve.http import schemas
from ensuite.serve.http.errors import Problem, error_body, to_problem
from ensuite.serve.http.keys import needs
from ensuite.serve.http.limits import K, StrictRoute
from ensuite.serve.http.schemas import PRINTABLE, TEXT
from ensuite.serve.new_items import NewItems
from ensuite.serve.recommendations import Ranked
from ensuite.serve.requests import BadRequest
from ensuite.serve.runs import RunFolder
from ensuite.serve.service import Service
from ensuite.serve.store import StoredEvent

WHAT = {
    400: "The body is not JSON.",
    401: "No key, or one that is unknown or revoked.",
    403: "The key has not the scope that is needed.",
    404: "There is none, or no such address.",
    409: "It contradicts what is there, or the model cannot do it.",
    413: "The body is too large.",
    415: "The body is not said to be JSON.",
    421: "Called under another name than localhost, without keys.",
    422: "A field is wrong; it is named.",
    503: "The event store, or the model, does not answer.",
    504: "The model did not answer in time.",
}
BODY = (400, 413, 415, 422)
"""Errors of every route that reads a body."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of errors, with those that every route has."""
    return {
        status: {"model": schemas.Error, "description": WHAT[status]}
        for status in sorted({401, 403, 421, 503, *statuses})
    }


router = APIRouter(route_class=StrictRoute)
reads, writes = [Depends(needs("read"))], [Depends(needs("write"))]
PathId = Annotated[str, Path(min_length=1, max_length=TEXT, pattern=PRINTABLE)]


async def service_of(request: Request) -> Service:
    """Return the service that the application serves; a plain function would be called in a thread."""
    return request.app.state.service


Served = Annotated[Service, Depends(service_of)]


@router.post(
    "/v1/recommend",
    response_model=schemas.Recommendation | schemas.Recommendations,
    responses=errors(*BODY, 404, 504),
    dependencies=reads,
    tags=["recommend"],
)
async def recommend(body: Annotated[schemas.RecommendBody, Body()], service: Served) -> Response:
    """Recommend items for a user, a history, or both; or, with `requests`, for many at once.

    One of many that cannot be answered has its `error` in its place, and the others have their items.
    """
    if isinstance(body, schemas.Recommend):
        return JSONResponse((await service.recommend_one(_asked(body, ""))).to_dict())
    asked = [_asked(one, f"requests.{number}.") for number, one in enumerate(body.requests)]
    answers = await asyncio.gather(*(_one_of_many(service, one, n) for n, one in enumerate(asked)))
    return JSONResponse({"answers": answers})


def _asked(body: schemas.Recommend, where: str) -> Asked:
    if body.user_id is None and body.history is None:
        raise Problem(422, "invalid", "give a user_id, a history, or both", where + "user_id")
    return body.request()


async def _one_of_many(service: Service, request: Asked, number: int) -> dict[str, Any]:
    try:
        answer: Answer = await service.recommend_one(request)
    except EnsuiteError as error:
        problem = to_problem(error)
        if problem.field is not None:
            problem.field = f"requests.{number}.{problem.field}"
        return error_body(problem)
    return answer.to_dict()


@router.post(
    "/v1/events",
    response_model=schemas.AppendedOut,
    responses=errors(*BODY, 409),
    dependencies=writes,
    tags=["events"],
)
async def append(body: schemas.Events, service: Served) -> Response:
    """Store what just happened: it is on the disk when this answers, and the next recommendation reads it.

    Events with an `event_id` may be sent again until they are acknowledged: each is stored once.
    """
    events = [event.event() for event in body.events]
    done = await service.append(events)
    knows = service.recommender.knows
    unknown = list(dict.fromkeys(event.item_id for event in events if not knows(event.item_id)))
    return JSONResponse({"new": done.new, "repeated": done.repeated, "unknown_items": unknown})


@router.get(
    "/v1/users/{user_id:path}",
    response_model=schemas.UserOut,
    responses=errors(404, 422),
    dependencies=reads,
    tags=["events"],
)
async def user(
    user_id: PathId, service: Served, limit: Annotated[int, Query(ge=1, le=1_000)] = 20
) -> Response:
    """What is stored of a user: how many events, and the last of them."""
    found = await service.user(user_id, limit)
    if found is None:
        raise Problem(404, "unknown_user", f"there are no events of user {user_id!r}", "user_id")
    known, recent = found
    return JSONResponse(
        {
            "user_id": known.user_id,
            "events": known.events,
            "first": _iso(known.first),
            "last": _iso(known.last),
            "recent": [_event(event) for event in recent],
        }
    )


@router.delete(
    "/v1/users/{user_id:path}",
    response_model=schemas.Deleted,
    responses=errors(404, 422),
    dependencies=writes,
    tags=["events"],
)
async def delete_user(user_id: PathId, service: Served) -> Response:
    """Delete all events of a user."""
    return JSONResponse({"deleted": await service.delete_user(user_id)})


@router.get(
    "/v1/items/{item_id:path}/similar",
    response_model=schemas.Similar,
    responses=errors(404, 409, 422),
    dependencies=reads,
    tags=["items"],
)
async def similar(item_id: PathId, service: Served, k: Annotated[int, Query(ge=1, le=K)] = 10) -> Response:
    """Items whose vectors are most like that of one item; 409 where the model has no vectors."""
    try:
        ranked = await service.similar(item_id, k)
    except BadRequest as error:
        if error.field == "item_id":
            raise Problem(404, "unknown_item", str(error), "item_id") from None
        raise
    return JSONResponse({"item_id": item_id, "items": _items(ranked)})


@router.put(
    "/v1/items",
    response_model=schemas.NewItemsOut,
    responses=errors(*BODY, 409),
    dependencies=writes,
    tags=["items"],
)
async def put_items(body: schemas.Items, service: Served) -> Response:
    """Add items that came after the training: recommended and read at once.

    A model that knows items by their text reads title and attributes, others what they are `like`. Refused,
    with the reason, where the model cannot; nothing is stored then. Titles of known items change.
    """
    return JSONResponse(_new_items(await service.put_items([item.item() for item in body.items])))


@router.get(
    "/v1/model",
    response_model=schemas.ModelOut,
    responses=errors(),
    dependencies=reads,
    tags=["model"],
)
async def model(request: Request, service: Served) -> Response:
    """The model that serves."""
    return JSONResponse(await _model(request, service))


@router.post(
    "/v1/model",
    response_model=schemas.ModelOut,
    responses=errors(*BODY, 404, 409),
    dependencies=writes,
    tags=["model"],
)
async def swap(body: schemas.Swap, request: Request, service: Served) -> Response:
    """Put another run in the place of the model that serves; requests under way end on the old one.

    409 when the run is damaged, is none of ensuite, or knows too few of the items: the old one goes on.
    """
    runs: RunFolder | None = request.app.state.runs
    if runs is None:
        message = "the service was started without --runs: there is no other run to serve"
        raise Problem(409, "no_runs", message, "run")
    try:
        path = await asyncio.to_thread(runs.find, body.run)
    except EnsuiteError as error:
        raise Problem(404, "unknown_run", str(error), "run") from None
    try:
        await service.swap(path)
    except EnsuiteError as error:
        reason = str(error).replace(str(path), body.run).replace(str(path.resolve()), body.run)
        raise Problem(409, "run_refused", reason, "run") from None
    return JSONResponse(await _model(request, service))


@router.get("/healthz", response_model=schemas.Health, responses=errors(), tags=["state"])
async def healthz() -> Response:
    """Whether the process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", response_model=schemas.Ready, responses=errors(), tags=["state"])
async def readyz(service: Served) -> Response:
    """Whether recommendations are answered. Without its store the service is still ready: it answers from
    given histories and the fallback list."""
    store = "ok" if await service.ping() else "unavailable"
    return JSONResponse({"status": "ready", "model": service.loaded.run.name, "store": store})


@router.get("/metrics", responses=errors(), dependencies=reads, tags=["state"], response_class=Response)
async def metrics(service: Served) -> Response:
    """Counters and latencies, for Prometheus."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _model(request: Request, service: Service) -> dict[str, Any]:
    loaded, recommender = service.loaded, service.recommender
    runs: RunFolder | None = request.app.state.runs
    card = loaded.run.card
    return {
        "run": loaded.run.name,
        "version": loaded.version,
        "system": loaded.run.config.name,
        "items": len(recommender.item_ids),
        "parameters": card["parameters"],
        "reads_events": recommender.model.max_length,
        "reads_times": recommender.model.needs_times(),
        "reads_request_time": recommender.model.reads_request_time(),
        "trained_on": card["data"]["name"],
        "since": _iso(round(loaded.since * 1_000_000)),
        "new_items": _new_items(loaded.new_items),
        "fallback": {"source": loaded.fallback.source},
        "runs": [] if runs is None else await asyncio.to_thread(runs.names),
    }


def _new_items(taken: NewItems) -> dict[str, Any]:
    return {"added": taken.added, "known": taken.known, "dropped": list(taken.dropped)}


def _items(ranked: Ranked) -> list[dict[str, Any]]:
    return ranked.to_dict()["items"]


def _event(event: StoredEvent) -> dict[str, Any]:
    names = ("item_id", "event_id", "kind", "session", "context")
    return {"time": _iso(event.time), **{name: getattr(event, name) for name in names}}


def _iso(microseconds: int) -> str:
    when = dt.datetime.fromtimestamp(microseconds // 1_000_000, dt.UTC)
    return when.replace(microsecond=microseconds % 1_000_000).isoformat()
