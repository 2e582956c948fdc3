"""`POST /v1/recommend`: whose events are read, and what is answered when the model cannot."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from serve.http.calling import error_of, given

from ensuite.serve import service
from ensuite.serve.asking import NoAnswer, Request
from ensuite.serve.store import StoreUnavailable


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def test_after_a_history_comes_what_the_model_says(start):
    answer = start("markov").recommend(history=[30, 40], k=2)
    assert ids(answer)[0] == 50  # in the log's own type
    assert answer["items"][0]["title"] == "item 5"
    assert (answer["fallback"], answer["events"], answer["unknown"]) == (None, 2, [])
    assert answer["model"]["run"] == "markov"
    assert ids(start("markov").recommend(history=["30", "40"], k=1)) == [50]


def test_an_event_counts_in_the_next_request(start):
    call = start("markov")
    call.happened("ann", 30, 40)
    assert ids(call.recommend(user_id="ann", k=1)) == [50]
    call.happened("ann", 110, start=2_000)
    answer = call.recommend(user_id="ann", k=1)
    assert (ids(answer), answer["events"]) == ([120], 3)
    assert call.recommend(user_id="ann", k=1, history=[70])["events"] == 4  # and nothing of it is stored
    assert call("GET", "/v1/users/ann").json()["events"] == 3


def test_a_user_may_be_a_number(start):
    call = start("markov")
    call.happened(7, 30, 40)
    assert ids(call.recommend(user_id="7", k=1)) == ids(call.recommend(user_id=7, k=1)) == [50]


def test_given_events_come_after_the_stored_ones_or_by_their_times(start):
    call = start("markov")
    call.happened("ann", 30, 40, start=1_000)
    assert ids(call.recommend(user_id="ann", history=[110], k=1)) == [120]
    later = [{"item_id": 110, "time": 5_000}]
    assert ids(call.recommend(user_id="ann", history=later, k=1)) == [120]
    earlier = [{"item_id": 110, "time": 5}]
    assert ids(call.recommend(user_id="ann", history=earlier, k=1)) == [50]
    again = [{"item_id": 40, "time": 1_001}]  # stored already: it counts once
    assert call.recommend(user_id="ann", history=again, k=1)["events"] == 2


def test_only_the_last_events_are_read_from_the_store(start):
    call = start("markov", history=2)
    call.happened("ann", 30, 40, 50, 60)
    answer = call.recommend(user_id="ann", k=18)
    assert answer["events"] == 2
    assert 30 in ids(answer)
    assert 50 not in ids(answer)


def test_at_leaves_out_what_happened_later(start):
    call = start("markov")
    call.happened("ann", 30, 40, 110)
    assert ids(call.recommend(user_id="ann", k=1, at=1_002)) == [50]
    assert call.recommend(user_id="ann", k=1, at=1_000)["fallback"] == "unknown user"


def test_exclude_and_candidates(start):
    call = start("markov")
    assert 30 not in ids(call.recommend(history=[30, 20], k=18))
    assert ids(call.recommend(history=[30, 20], k=1, exclude="none")) == [30]
    assert ids(call.recommend(history=[30, 40], k=1, exclude=[50, "60"])) != [50]
    answer = call.recommend(history=[30, 40], k=2, candidates=[50, 90, 7])
    assert ids(answer) == [50, 90]
    assert answer["unknown_candidates"] == [7]


def test_unknown_items_are_counted_and_the_rest_is_read(start):
    answer = start("markov").recommend(history=[999, 30, "x", 40], k=1)
    assert (ids(answer), answer["unknown"], answer["events"]) == ([50], [999, "x"], 4)


def test_what_a_model_does_not_read_is_said(start):
    call = start("sasrec-1")
    assert call.recommend(history=[30], context={"device": "tv"}, at=9)["ignored"] == ["context", "at"]
    timed = [{"item_id": 30, "time": 5}]
    assert start("hstu").recommend(history=timed, at=9)["ignored"] == []


def test_a_model_of_times_reads_them_and_says_when_they_are_missing(start):
    call = start("hstu")
    timed = [{"item_id": 30, "time": 1_000_000}, {"item_id": 40, "time": "1970-01-12T13:47:40"}]
    near = call.recommend(history=timed, k=3, at=1_000_100)
    far = call.recommend(history=timed, k=3, at=900_000_000)
    assert [i["score"] for i in near["items"]] != [i["score"] for i in far["items"]]
    status, field, said = error_of(call("POST", "/v1/recommend", {"history": [30, 40]}))
    assert (status, field) == (422, "history")
    assert "reads times" in said
    status, field, _ = error_of(call("POST", "/v1/recommend", {"history": timed, "at": 5}))
    assert (status, field) == (422, "at")
    call.happened("ann", 30, 40)
    assert call.recommend(user_id="ann", k=1)["fallback"] is None  # asked now


def test_many_have_their_answers_and_their_errors_in_place(start):
    call = start("markov")
    call.happened("ann", 30, 40)
    requests = [
        {"user_id": "ann", "k": 1},
        {"history": [110], "k": 21},
        {"user_id": "nobody", "k": 1, "fallback": False},
        {"history": [110], "k": 1},
    ]
    first, second, third, fourth = call.recommend(requests=requests)["answers"]
    assert ids(first) == [50]
    assert second["error"]["field"] == "requests.1.k"
    assert "only 19 can be had" in second["error"]["message"]
    assert third["error"]["code"] == "unknown_user"
    assert ids(fourth) == [120]


def test_nobody_knows_an_unknown_user_but_the_popular_items_are_known(start, cycle):
    answer = start("markov").recommend(user_id="nobody", k=3)
    counts = {item * 10: int((cycle.item_idx == item).sum()) for item in range(1, 21)}
    assert answer["fallback"] == "unknown user"
    assert answer["items"][0]["title"].startswith("item ")
    train_best = ids(answer)
    assert len(train_best) == 3
    assert min(counts[item] for item in train_best) >= sorted(counts.values())[10]
    assert [item["score"] for item in answer["items"]] == sorted(
        (item["score"] for item in answer["items"]), reverse=True
    )


def test_the_fallback_list_keeps_to_candidates_and_exclusions(start):
    call = start("markov")
    best = ids(call.recommend(user_id="nobody", k=3))
    assert ids(call.recommend(user_id="nobody", k=2, exclude=best[:1])) == best[1:]
    assert ids(call.recommend(user_id="nobody", k=1, candidates=[best[2], 999])) == [best[2]]
    answer = call.recommend(history=[999], k=1)
    assert (answer["fallback"], answer["unknown"]) == ("unknown items", [999])
    status, field, said = error_of(call("POST", "/v1/recommend", {"user_id": "nobody", "k": 21}))
    assert (status, field) == (422, "k")
    assert "20" in said


def test_without_a_popularity_run_the_catalogue_comes_in_order(start):
    call = start("markov", fallback=None)
    answer = call.recommend(user_id="nobody", k=2)
    assert answer["items"] == [
        {"item_id": 10, "title": "item 1", "score": None},
        {"item_id": 20, "title": "item 2", "score": None},
    ]
    assert call("GET", "/v1/model").json()["fallback"] == {"source": "catalogue order"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [({"user_id": "nobody"}, 404, "unknown_user"), ({"history": [999]}, 422, "unknown_items")],
)
def test_who_wants_no_fallback_gets_an_error(start, body, status, code):
    answer = start("markov")("POST", "/v1/recommend", body | {"fallback": False})
    assert error_of(answer)[0] == status
    assert answer.json()["error"]["code"] == code


def test_a_model_that_fails_is_stood_in_for(start, monkeypatch, caplog):
    call = start("markov")

    def broken(*_):
        raise RuntimeError("of the inside")

    monkeypatch.setattr(call.service.recommender.engine, "top_k", broken)
    answer = call.recommend(history=[30, 40], k=3)
    assert answer["fallback"] == "model failed"
    assert set(ids(answer)).isdisjoint({30, 40})  # what was seen is left out here too
    assert "of the inside" in caplog.text
    status, _, said = error_of(call("POST", "/v1/recommend", {"history": [30], "fallback": False}))
    assert status == 503
    assert "inside" not in said
    assert 'ensuite_fallbacks_total{reason="model failed"} 2.0' in call("GET", "/metrics").text


def test_a_history_that_breaks_the_model_breaks_no_other_of_its_batch(start, monkeypatch):
    call = start("markov")
    real, sizes = call.service.recommender.engine.top_k, []

    def top_k(history, *rest):
        sizes.append(len(history.items))
        if bool((history.items == 9).any()):
            raise RuntimeError("item 9 is poison")
        return real(history, *rest)

    monkeypatch.setattr(call.service.recommender.engine, "top_k", top_k)

    async def together():
        asked = [[90], [30, 40], [999], [110, 120]]
        requests = [Request(history=given(*history), k=1) for history in asked]
        return await call.service.recommend(requests)

    answers = call.run(together())
    assert [answer.fallback for answer in answers] == ["model failed", None, "unknown items", None]
    assert [answers[n].ranked.ids for n in (1, 3)] == [[50], [130]]
    assert sizes[0] == 3  # they went together first


def test_a_slow_model_is_not_waited_for(start, monkeypatch):
    call = start("markov", timeout=0.1)
    real, wait = call.service.recommender.engine.top_k, threading.Event()

    def slow(*arguments):
        wait.wait(5)
        return real(*arguments)

    monkeypatch.setattr(call.service.recommender.engine, "top_k", slow)
    begun = time.monotonic()
    assert call.recommend(history=[30], k=1)["fallback"] == "timeout"
    assert time.monotonic() - begun < 2
    status, _, _ = error_of(call("POST", "/v1/recommend", {"history": [30], "fallback": False}))
    assert status == 504
    wait.set()
    monkeypatch.undo()
    assert ids(call.recommend(history=[30, 40], k=1)) == [50]


def test_without_the_store_given_histories_are_answered_and_users_get_the_fallback(start, monkeypatch):
    call = start("markov")

    def away(*_):
        raise StoreUnavailable("postgresql://secret@host is away")

    for name in ("histories", "append", "user", "ping"):
        monkeypatch.setattr(call.service.store, name, away)
    assert call.recommend(user_id="ann", k=1)["fallback"] == "store unavailable"
    answer = call.recommend(user_id="ann", history=[30, 40], k=1)
    assert (ids(answer), answer["fallback"], answer["ignored"]) == ([50], None, ["user_id"])
    for method, url, body in (
        ("POST", "/v1/events", {"events": [{"user_id": "ann", "item_id": 1}]}),
        ("GET", "/v1/users/ann", None),
        ("POST", "/v1/recommend", {"user_id": "ann", "fallback": False}),
    ):
        status, _, said = error_of(call(method, url, body))
        assert status == 503
        assert "secret" not in said
    assert call("GET", "/readyz").json() == {"status": "ready", "model": "markov", "store": "unavailable"}
    assert 'ensuite_store_errors_total{operation="append"} 1.0' in call("GET", "/metrics").text


def test_a_store_that_never_answers_is_taken_as_away(start, monkeypatch):
    call, frozen = start("markov"), threading.Event()
    monkeypatch.setattr(service, "STORE_TIMEOUT", 0.05)
    monkeypatch.setattr(call.service.store, "append", lambda _: frozen.wait(10))
    status, _, said = error_of(
        call("POST", "/v1/events", {"events": [{"user_id": "ann", "item_id": 30, "event_id": "1"}]})
    )
    frozen.set()
    assert (status, "nothing is acknowledged" in said) == (503, True)
    assert 'ensuite_store_errors_total{operation="append"} 1.0' in call("GET", "/metrics").text


def test_the_service_itself_raises_the_first_error(start):
    call = start("markov")
    with pytest.raises(NoAnswer, match="unknown user"):
        call.run(call.service.recommend([Request(user_id="nobody", fallback=False)]))


def test_requests_that_meet_go_to_the_model_together(start, monkeypatch):
    call = start("markov")
    real, sizes = call.service.recommender.engine.top_k, []

    def top_k(history, *rest):
        sizes.append(len(history.items))
        return real(history, *rest)

    monkeypatch.setattr(call.service.recommender.engine, "top_k", top_k)

    async def many():
        async with call.client() as client:
            body = [{"history": [10 * (1 + n % 20)], "k": 1} for n in range(40)]
            return await asyncio.gather(*(client.post("/v1/recommend", json=one) for one in body))

    answers = call.run(many())
    assert [ids(answer.json())[0] for answer in answers] == [10 * ((1 + n) % 20 + 1) for n in range(40)]
    assert max(sizes) > 5
    assert sum(sizes) == 40
