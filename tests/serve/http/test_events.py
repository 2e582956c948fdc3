"""Events and users."""

from __future__ import annotations

import datetime as dt

from serve.http.calling import error_of


def test_what_happened_is_stored_once_and_given_back(start):
    call = start("markov")
    first = {"user_id": "ann", "item_id": 30, "event_id": "e1", "time": "2024-05-01T12:30:00+02:00"}
    second = {
        "user_id": "ann",
        "item_id": "new",
        "time": 1_714_559_400.25,
        "kind": "buy",
        "context": {"a": 1},
    }
    answer = call("POST", "/v1/events", {"events": [first, second]}).json()
    assert answer == {"new": 2, "repeated": 0, "unknown_items": ["new"]}
    answer = call("POST", "/v1/events", {"events": [first, {"user_id": "bob", "item_id": 1}]}).json()
    assert (answer["new"], answer["repeated"]) == (1, 1)
    user = call("GET", "/v1/users/ann").json()
    assert (user["user_id"], user["events"]) == ("ann", 2)
    assert user["first"] == user["recent"][0]["time"] == "2024-05-01T10:30:00+00:00"
    assert user["recent"][1] == {
        "item_id": "new",
        "time": "2024-05-01T10:30:00.250000+00:00",
        "event_id": None,
        "kind": "buy",
        "session": None,
        "context": {"a": 1},
    }
    assert len(call("GET", "/v1/users/ann?limit=1").json()["recent"]) == 1


def test_an_event_without_a_time_happened_now(start):
    call = start("markov")
    call("POST", "/v1/events", {"events": [{"user_id": "ann", "item_id": 30}]})
    when = dt.datetime.fromisoformat(call("GET", "/v1/users/ann").json()["last"])
    assert abs((dt.datetime.now(dt.UTC) - when).total_seconds()) < 60


def test_an_event_id_belongs_to_one_event(start):
    call = start("markov")
    call("POST", "/v1/events", {"events": [{"user_id": "ann", "item_id": 30, "event_id": "e1"}]})
    body = {"events": [{"user_id": "ann", "item_id": 40, "event_id": "e1"}]}
    status, _, said = error_of(call("POST", "/v1/events", body))
    assert status == 409
    assert "e1" in said


def test_a_user_is_forgotten(start):
    call = start("markov")
    call.happened("ann/b", 30, 40)
    assert call("DELETE", "/v1/users/ann%2Fb").json() == {"deleted": 2}
    assert call("DELETE", "/v1/users/ann%2Fb").json() == {"deleted": 0}
    assert error_of(call("GET", "/v1/users/ann%2Fb"))[:2] == (404, "user_id")
    assert call.recommend(user_id="ann/b", k=1)["fallback"] == "unknown user"
