"""What nobody should send: 4xx, naming the field, and nothing of the inside."""

from __future__ import annotations

import json
import time
from urllib.parse import quote

import pytest
from serve.http.calling import error_of

DAY = 86_400


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not JSON"),
        (b"", 422, "required"),
        (b"\xff\xfe", 400, "not JSON"),
        (b'{"history": [NaN]}', 400, "NaN"),
        (b'{"history": [Infinity]}', 400, "Infinity"),
        (b'{"history": [1], "at": 1e999}', 400, "1e999"),
        (b'{"history": [30], "k": 1, "k": 2}', 400, "'k' stands twice"),
        (b'{"history": ' + b"[" * 100_000, 400, "nested too deeply"),
        (b'{"k": ' + b"9" * 5_000 + b"}", 400, "not JSON"),
        (b"[]", 422, ""),
        (b"null", 422, ""),
    ],
)
def test_malformed_bodies(start, body, status, said):
    answer = start()("POST", "/v1/recommend", content=body, headers={"Content-Type": "application/json"})
    got, field, message = error_of(answer)
    assert (got, field) == (status, "body")
    assert said in message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "user_id"),
        ({"history": []}, "history"),
        ({"history": [30], "k": 0}, "k"),
        ({"history": [30], "k": -3}, "k"),
        ({"history": [30], "k": 21}, "k"),  # above the catalogue
        ({"history": [30], "k": 10**6}, "k"),
        ({"history": [30], "k": "3"}, "k"),
        ({"history": [30], "k": 1.5}, "k"),
        ({"history": [30], "k": True}, "k"),
        ({"history": 30}, "history"),
        ({"history": [30, None]}, "history.1"),
        ({"history": [30, 1.5]}, "history.1"),
        ({"history": [True]}, "history.0"),
        ({"history": [[30]]}, "history.0"),
        ({"history": [2**63]}, "history.0"),
        ({"history": ["a\x00b"]}, "history.0"),
        ({"history": ["a\nb"]}, "history.0"),
        ({"history": ["\ud800"]}, "history.0"),
        ({"history": [""]}, "history.0"),
        ({"history": ["x" * 513]}, "history.0"),
        ({"history": [30] * 5_001}, "history"),
        ({"history": [{"time": 5}]}, "history.0.item_id"),
        ({"history": [{"item_id": 30, "when": 5}]}, "history.0.when"),
        ({"history": [{"item_id": 30, "time": "soon"}]}, "history.0.time"),
        ({"history": [{"item_id": 30, "time": -1}]}, "history.0.time"),
        ({"history": [{"item_id": 30, "time": 5}, 40]}, "history"),
        ({"history": [30], "at": time.time() + 40 * DAY}, "at"),
        ({"history": [30], "at": 10**300}, "at"),
        ({"history": [30], "candidates": []}, "candidates"),
        ({"history": [30], "candidates": [7]}, "candidates"),  # none of them is known
        ({"history": [30], "exclude": "some"}, "exclude"),
        ({"history": [30], "exclude": [None]}, "exclude.0"),
        ({"history": [30], "context": [1]}, "context"),
        ({"history": [30], "kk": 1}, "kk"),
        ({"user_id": "a\x1bb"}, "user_id"),
        ({"user_id": None, "history": None}, "user_id"),
        ({"requests": []}, "requests"),
        ({"requests": [{"history": [30]}] * 257}, "requests"),
        ({"requests": [{"history": [30]}, {"history": [30], "k": 0}]}, "requests.1.k"),
        ({"requests": [{"history": [30]}, {}]}, "requests.1.user_id"),
        ({"requests": [{"history": [30]}], "k": 3}, "k"),
    ],
)
def test_recommend(start, body, field):
    status, named, said = error_of(start()("POST", "/v1/recommend", **as_json(body)))
    assert (status, named) == (422, field)
    assert said


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"item_id": None}, "item_id"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "a\tb"}, "user_id"),
        ({"time": time.time() + 2 * DAY}, "time"),
        ({"time": 1_700_000_000_000}, "time"),  # milliseconds
        ({"time": "2024-13-01"}, "time"),
        ({"time": True}, "time"),
        ({"event_id": 5}, "event_id"),
        ({"kind": "k" * 513}, "kind"),
        ({"context": {"a": "\x00"}}, "context"),
        ({"context": {"\ud800": 1}}, "context"),
        ({"context": {"a": "\ud800"}}, "context"),
        ({"sesion": "a"}, "sesion"),
    ],
)
def test_events(start, more, field):
    event = {"user_id": "ann", "item_id": 30} | more
    body = {"events": [{"user_id": "bob", "item_id": 30}, event]}
    call = start()
    status, named, _ = error_of(call("POST", "/v1/events", **as_json(body)))
    assert (status, named) == (422, f"events.1.{field}")
    assert call("GET", "/v1/users/bob").status_code == 404  # all or none


@pytest.mark.parametrize("body", [{"events": []}, {"events": [{"user_id": "a", "item_id": 1}] * 1_001}])
def test_no_events_or_too_many(start, body):
    assert error_of(start()("POST", "/v1/events", body))[:2] == (422, "events")


def test_deep_context(start):
    deep = {}
    for _ in range(40):
        deep = {"a": deep}
    event = {"user_id": "ann", "item_id": 30, "context": deep}
    assert error_of(start()("POST", "/v1/events", {"events": [event]}))[:2] == (422, "events.0.context")


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE events; --", '" OR 1=1', "%", "../../etc/passwd", "\\", "ä€😀"]
)
def test_ids_are_data_whatever_they_look_like(start, text):
    call = start()
    call.happened("ann", 30)
    call.happened(text, 30, 40)
    assert call.recommend(user_id=text, k=1)["items"][0]["item_id"] == 50
    assert call("GET", "/v1/users/" + quoted(text)).json()["user_id"] == text
    assert call("DELETE", "/v1/users/" + quoted(text)).json() == {"deleted": 2}
    assert call("GET", "/v1/users/ann").json()["events"] == 1
    assert call.recommend(history=[text], k=1)["fallback"] == "unknown items"


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("GET", "/v1/users/a%00b", 422),
        ("DELETE", "/v1/users/" + "x" * 600, 422),
        ("GET", "/v1/users/", 422),
        ("GET", "/v1/users/ann?limit=0", 422),
        ("GET", "/v1/items/30/similar?k=0", 422),
        ("GET", "/v1/items/30/similar?k=x", 422),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/../../etc/passwd", 404),
        ("DELETE", "/v1/model", 405),
        ("GET", "/v1/recommend", 405),
    ],
)
def test_addresses(start, method, url, status):
    assert error_of(start()(method, url))[0] == status


def test_a_body_that_is_too_large(start):
    call = start()
    large = b'{"history": [' + b"1," * (1 << 20) + b"1]}"
    kind = {"Content-Type": "application/json"}
    assert error_of(call("POST", "/v1/recommend", content=large, headers=kind))[:2] == (413, "body")

    async def chunks():
        for at in range(0, len(large), 1 << 16):
            yield large[at : at + (1 << 16)]

    status, field, _ = error_of(call("POST", "/v1/recommend", content=chunks(), headers=kind))
    assert (status, field) == (413, "body")


def test_a_body_of_another_type(start):
    body = b'{"events": [{"user_id": "ann", "item_id": 30}]}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = start()("POST", "/v1/events", content=body, headers={"Content-Type": kind})
        assert error_of(answer)[0] == 415  # what a foreign page may send without asking


def test_an_unexpected_failure_tells_nothing(start, monkeypatch, caplog):
    call = start()

    def broken(*_):
        raise RuntimeError("of the inside, /secret/path")

    monkeypatch.setattr(call.service.store, "append", broken)
    answer = call("POST", "/v1/events", {"events": [{"user_id": "ann", "item_id": 30}]})
    status, _, said = error_of(answer)
    assert status == 500
    assert "secret" not in answer.text
    assert "log" in said
    assert "/secret/path" in caplog.text


def as_json(body):
    """JSON of a client that does not check what it sends: httpx refuses half of a surrogate pair."""
    return {"content": json.dumps(body).encode(), "headers": {"Content-Type": "application/json"}}


def quoted(text: str) -> str:
    return quote(text, safe="")
