"""New items, and items like another."""

from __future__ import annotations

import pytest
import torch
from serve.http.calling import error_of

from ensuite.serve.runs import RunFolder
from ensuite.serve.service import Service
from ensuite.serve.store import Item

NEW = {"item_id": "new", "title": "Brand new", "attributes": {"colour": "red"}, "like": [50]}


def put(call, *items):
    return call("PUT", "/v1/items", {"items": list(items)})


def by_id(answer):
    return {item["item_id"]: item for item in answer["items"]}


def test_a_new_item_is_recommended_and_read_at_once(start):
    call = start("sasrec-1")
    assert put(call, NEW).json() == {"added": 1, "known": 0, "dropped": []}
    answer = by_id(call.recommend(history=[30, 40], k=19))
    assert answer["new"]["title"] == "Brand new"
    assert answer["new"]["score"] == pytest.approx(answer[50]["score"], abs=1e-5)
    after_new = by_id(call.recommend(history=[30, "new"], k=19))
    after_like = by_id(call.recommend(history=[30, 50], k=19))
    assert after_new[60]["score"] == pytest.approx(after_like[60]["score"], abs=1e-5)
    assert "new" not in after_new
    assert by_id(call("GET", "/v1/items/new/similar?k=3").json())[50]["score"] == pytest.approx(1, abs=1e-5)
    event = {"events": [{"user_id": "ann", "item_id": "new"}]}
    assert call("POST", "/v1/events", event).json()["unknown_items"] == []
    assert call("GET", "/v1/model").json()["items"] == 21


def test_it_is_the_mean_of_what_it_is_like(start):
    call = start("sasrec-1")
    put(call, NEW | {"like": [50, 60, 70]})
    model = call.service.recommender.model
    table = model.items.weight
    torch.testing.assert_close(table[21], table[5:8].mean(0))


def test_known_items_get_new_titles_in_any_model(start):
    call = start("markov")
    answer = put(call, {"item_id": 50, "title": "Fifty"})
    assert answer.json() == {"added": 0, "known": 1, "dropped": []}
    assert call.recommend(history=[30, 40], k=1)["items"][0]["title"] == "Fifty"


@pytest.mark.parametrize(
    ("run", "items", "status", "field", "said"),
    [
        ("sasrec-1", [NEW, {"item_id": "other"}], 422, "items.1.like", "train again"),
        ("sasrec-1", [NEW | {"like": [50, 999]}], 422, "items.0.like.1", "999"),
        ("markov", [NEW], 409, None, "Markov cannot take new items"),
        ("sasrec-1", [], 422, "items", ""),
        ("sasrec-1", [{"item_id": None}], 422, "items.0.item_id", ""),
        ("sasrec-1", [NEW | {"like": 50}], 422, "items.0.like", ""),
    ],
)
def test_what_the_model_cannot_use_is_refused_whole(start, run, items, status, field, said):
    call = start(run)
    got, named, message = error_of(put(call, *items))
    assert (got, named) == (status, field)
    assert said in message
    assert call.service.store.items() == []
    assert call("GET", "/v1/model").json()["items"] == 20


def test_new_items_survive_a_restart_and_a_swap(start, runs):
    first = start("sasrec-1")
    put(first, NEW, {"item_id": "77", "like": [60]})
    call = start("sasrec-1", runs=RunFolder(runs))
    assert {"new", 77} <= set(by_id(call.recommend(history=[30, 40], k=20)))  # in the log's own type
    answer = call("POST", "/v1/model", {"run": "sasrec-2"}).json()
    assert answer["new_items"] == {"added": 2, "known": 0, "dropped": []}
    assert "new" in by_id(call.recommend(history=[30, 40], k=20))
    dropped = call("POST", "/v1/model", {"run": "markov"}).json()["new_items"]["dropped"]
    assert sorted(dropped) == ["77", "new"]
    assert "new" not in by_id(call.recommend(history=[30, 40], k=18))
    assert call("POST", "/v1/model", {"run": "sasrec-1"}).json()["new_items"]["added"] == 2
    assert 'ensuite_new_items{state="added"} 2.0' in call("GET", "/metrics").text


def test_an_item_that_the_new_model_knows_itself_is_its_own(start, runs):
    call = start("sasrec-1")
    call.service.store.put_items([Item("50", "Fifty", {}, ["60"]), Item("lost", None, {}, ["gone"])])
    call.run(call.service.refresh_items())  # as another process would have put them
    model = call("GET", "/v1/model").json()
    assert model["new_items"] == {"added": 0, "known": 1, "dropped": ["lost"]}
    assert model["items"] == 20
    assert by_id(call.recommend(history=[30, 40], k=18))[50]["title"] == "Fifty"


def test_similar(start, runs):
    call = start("sasrec-1")
    answer = call("GET", "/v1/items/30/similar?k=3").json()
    assert len(answer["items"]) == 3
    assert 30 not in by_id(answer)
    assert error_of(call("GET", "/v1/items/999/similar"))[:2] == (404, "item_id")
    assert error_of(call("GET", "/v1/items/30/similar?k=20"))[:2] == (422, "k")
    status, _, said = error_of(start("markov")("GET", "/v1/items/30/similar"))
    assert status == 409
    assert "no item vectors" in said


def test_the_service_lets_go_of_its_threads(start):
    service: Service = start("markov").service
    service.close()
    with pytest.raises(RuntimeError):
        service._model._thread.submit(print)
