"""Occlusion: an event's weight is what the score loses without it, and nothing else changes meanwhile."""

from __future__ import annotations

import math

import pytest
import torch

from ensuite.config import config
from ensuite.errors import EnsuiteError
from ensuite.models.base import Model
from ensuite.serve.explain import explain
from ensuite.serve.recommender import Recommender

IDS = [10, 20, 30, 40, 50]


@config
class _Config:
    max_length: int = 3
    timed: bool = False


class Sums(Model):
    """Item v scores v times the sum of the rows read, plus the request's time; keeps what it was asked."""

    Config = _Config

    def needs_times(self) -> bool:
        return self.config.timed

    def catalogue(self):
        return torch.arange(self.n_items + 1).float()

    def scorer(self, history, catalogue):
        self.asked = getattr(self, "asked", 0) + 1
        self.read = history
        total = history.items.sum(1, keepdim=True).float()
        if self.config.timed:
            last = (history.items != 0).sum(1) - 1
            total = total + history.request_times[torch.arange(len(last)), last][:, None]
        return lambda first, last: total * catalogue[first:last]


def sums(**values) -> tuple[Recommender, Sums]:
    model = Sums(_Config(**values), len(IDS))
    return Recommender(model, IDS), model


def test_the_weight_is_what_the_score_loses():
    recommender, model = sums()
    found = explain(recommender, [10, 30, 20], [50, 40])
    assert found.items == [50, 40]
    assert found.scores == [5.0 * 6, 4.0 * 6]
    assert found.weights == [[5.0, 15.0, 10.0], [4.0, 12.0, 8.0]]
    assert found.of(40) == [4.0, 12.0, 8.0]
    assert model.asked == 1  # the whole history and all shorter ones together


def test_what_the_model_does_not_read_weighs_nothing():
    recommender, _ = sums()
    # The model reads the last three known items; leaving one out does not let an older one in.
    assert explain(recommender, [50, 10, "?", 30, 20], [40]).of(40) == [0.0, 4.0, 0.0, 12.0, 8.0]


def test_a_seen_item_and_the_same_item_twice_are_explained_too():
    recommender, _ = sums()
    assert explain(recommender, [20, 20], [20]).of(20) == [4.0, 4.0]


def test_there_is_nothing_to_leave_out_of_one_event():
    recommender, _ = sums()
    weights = explain(recommender, ["?", 20], [40]).of(40)
    assert weights[0] == 0.0
    assert math.isnan(weights[1])


@pytest.mark.parametrize(("at", "asked"), [(None, 30), (100, 100)])
def test_the_time_of_the_request_stays(at, asked):
    recommender, model = sums(timed=True)
    found = explain(
        recommender, [(30, 30), (10, 10), (20, 20)], [40], at=at
    )  # as given, not in order of time
    assert found.of(40) == [12.0, 4.0, 8.0]
    last = (model.read.items != 0).sum(1) - 1
    assert model.read.request_times[torch.arange(4), last].tolist() == [asked] * 4


def test_refusals():
    recommender, _ = sums()
    with pytest.raises(EnsuiteError, match="none of its 1 items is known"):
        explain(recommender, ["?"], [40])
    with pytest.raises(EnsuiteError, match="is empty"):
        explain(recommender, [], [40])
    with pytest.raises(EnsuiteError, match="no item to explain"):
        explain(recommender, [10], [])
