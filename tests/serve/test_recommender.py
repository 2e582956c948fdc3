"""The request API: ids, exclusions, candidates, times, and what is said when a request cannot be met."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
import pytest
import torch

from ensuite.config import config
from ensuite.data.dataset import Split, write_dataset
from ensuite.errors import EnsuiteError
from ensuite.models.base import Model
from ensuite.models.popularity import Popularity, PopularityConfig
from ensuite.models.recency import Recency, RecencyConfig
from ensuite.models.sasrec import SASRec
from ensuite.serve import engine
from ensuite.serve import recommender as module
from ensuite.serve.recommender import Recommender, user_history
from ensuite.serve.requests import Ask, BadRequest, NothingKnown

IDS = [10, 20, 30, 40, 50]


@config
class _Config:
    max_length: int = 3
    timed: bool = True


class Spy(Model):
    """Scores item v by v % 3, keeps the last history that it read."""

    Config = _Config

    def needs_times(self) -> bool:
        return self.config.timed

    def catalogue(self):
        return torch.arange(self.n_items + 1).remainder(3).float()

    def scorer(self, history, catalogue):
        self.read = history
        return lambda first, last: catalogue[first:last].repeat(len(history.items), 1)


def popular(counts=(5, 9, 7, 1, 3), ids=IDS, titles=None) -> Recommender:
    model = Popularity(PopularityConfig(), len(counts))
    model.counts = torch.tensor([0, *counts])
    return Recommender(model, ids, titles)


def spy(n_items: int = 5, **values) -> tuple[Recommender, Spy]:
    model = Spy(_Config(**values), n_items)
    return Recommender(model, [10 * i for i in range(1, n_items + 1)]), model


def test_best_first_without_the_seen_ones():
    answer = popular().recommend([20, 40], k=3)
    assert answer.ids == [30, 10, 50]
    assert answer.scores == [7, 5, 3]
    assert answer.unknown == []


def test_ids_come_back_in_their_own_type_and_are_found_as_text_too():
    assert popular().recommend(["20", np.int64(40)], k=1).ids == [30]
    assert popular(ids=list("abcde")).recommend(["b"], k=2).ids == ["c", "a"]


@pytest.mark.parametrize(
    ("exclude", "ids"),
    [("seen", [30, 10]), ("none", [20, 30]), ([30, 50], [20, 10]), ([], [20, 30]), ([30, 999], [20, 10])],
)
def test_exclude(exclude, ids):
    assert popular().recommend([20], k=2, exclude=exclude).ids == ids


def test_candidates_are_a_subset_and_unknown_ones_are_named():
    answer = popular().recommend([20], k=2, candidates=[40, 50, 20, 77])
    assert answer.ids == [50, 40]
    assert answer.unknown_candidates == [77]
    assert answer.to_dict()["unknown_candidates"] == [77]


def test_many_histories_keep_their_order_whatever_their_lengths():
    answer = popular().recommend([[20, 30, 40], [10], [50, 20]], k=2)
    assert answer.ids == [[10, 50], [20, 30], [30, 10]]
    assert answer[1].ids == [20, 30]
    assert len(answer) == 3
    assert answer.to_polars()["item_id"].to_list() == [10, 50, 20, 30, 30, 10]
    assert answer.to_polars()["rank"].to_list() == [1, 2] * 3


def test_ties_go_to_the_item_further_up_in_the_table():
    assert popular(counts=(1, 2, 1, 1, 2)).recommend([30], k=4).ids == [20, 50, 10, 40]


@pytest.mark.parametrize("held", [1, 2, 3, 1 << 24])
def test_blocks_of_any_width_give_the_same(held, monkeypatch):
    recommender = popular(counts=(3, 1, 3, 2, 3, 3, 0), ids=list("abcdefg"))
    monkeypatch.setattr(engine, "SCORES_HELD", held)
    assert recommender.recommend(["c"], k=6).ids == ["a", "e", "f", "d", "b", "g"]
    assert recommender.recommend(["c"], k=2, candidates=["g", "b", "f"]).ids == ["f", "b"]
    assert recommender.recommend([["c"], ["a", "g"]], k=3).ids == [["a", "e", "f"], ["c", "e", "f"]]


def test_batches_of_any_size_give_the_same(monkeypatch):
    model = Recency(RecencyConfig(), 5)
    recommender = Recommender(model, IDS)
    histories = [[10, 20, 30], [40], [50, 10], [20, 20, 20, 10]]
    whole = recommender.recommend(histories, k=4, exclude="none").ids
    monkeypatch.setattr(module, "BATCH", 1)
    assert recommender.recommend(histories, k=4, exclude="none").ids == whole
    assert [recommender.recommend(one, k=4, exclude="none").ids for one in histories] == whole
    assert whole[0] == [30, 20, 10, 40]


def test_unknown_items_are_left_out_and_reported():
    recommender, model = spy(timed=False)
    answer = recommender.recommend([10, 999, 40, "x"], k=1)
    assert answer.unknown == [999, "x"]
    assert model.read.items.tolist() == [[1, 4]]
    assert "2 unknown in the history: 999, x" in repr(answer)


def test_nothing_known_is_an_error():
    with pytest.raises(
        EnsuiteError,
        match=r"the history: none of its 2 items is known.*998, 999.*known ids look like 10, 20, 30",
    ):
        popular().recommend([998, 999])
    with pytest.raises(EnsuiteError, match="history 2: none of its 1 items"):
        popular().recommend([[10], [999]], k=1)
    with pytest.raises(EnsuiteError, match="none of the 1 candidates"):
        popular().recommend([10], k=1, candidates=[999])


@pytest.mark.parametrize(
    ("values", "can"),
    [
        (
            {"k": 6, "exclude": "none"},
            "only 5 can be had for the history: 5 items in the catalogue, 0 of them excluded",
        ),
        ({"k": 5}, "only 4 can be had"),
        ({"k": 3, "candidates": [20, 30, 40]}, "only 2 can be had.*3 known candidates, 1 of them excluded"),
        ({"k": 0}, "k = 0.*at least 1"),
    ],
)
def test_k_beyond_what_can_be_had_says_how_many_can(values, can):
    with pytest.raises(EnsuiteError, match=can):
        popular().recommend([20], **values)
    assert len(popular().recommend([20], k=4).ids) == 4


def test_k_is_checked_for_each_of_many():
    with pytest.raises(EnsuiteError, match="k = 4: only 3 can be had for history 2"):
        popular().recommend([[10], [10, 20]], k=4)


def test_times_are_put_in_order_and_cut_to_what_the_model_reads():
    recommender, model = spy()
    recommender.recommend([(40, 400), (10, 100), (999, 150), (20, 200), (30, 200)], k=1)
    assert model.read.items.tolist() == [[2, 3, 4]]  # the last three, equal times as they stood
    assert model.read.times.tolist() == [[200, 200, 400]]
    assert model.read.request_times.tolist() == [[200, 400, 400]]


@pytest.mark.parametrize(
    "at",
    [86_400, "86400", "1970-01-02", "1970-01-02T00:00:00Z", dt.datetime(1970, 1, 2), dt.date(1970, 1, 2)],
)
def test_at_is_the_time_of_the_request(at):
    recommender, model = spy()
    recommender.recommend([[(40, 5)], [(20, 7), (10, 9)]], k=1, at=at)
    assert model.read.request_times.tolist() == [[86_400, 0], [9, 86_400]]


def test_times_are_in_the_unit_of_the_dataset():
    model = Spy(_Config(), 2)
    Recommender(model, [1, 2], time_unit="ms").recommend([(1, 5_999)], k=1, at=9_000)
    assert model.read.times.tolist() == [[5]]
    assert model.read.request_times.tolist() == [[9]]


def test_a_model_of_times_says_what_is_missing():
    with pytest.raises(EnsuiteError, match=r"no times, which this Spy reads.*--times"):
        spy()[0].recommend([10, 20])
    with pytest.raises(EnsuiteError, match="1 of 2 events have a time"):
        spy()[0].recommend([10, (20, 5)])
    with pytest.raises(EnsuiteError, match="5 seconds before the last event"):
        spy()[0].recommend([(10, 10)], k=1, at=5)
    with pytest.raises(EnsuiteError, match="time 'soon'"):
        spy()[0].recommend([(10, "soon")])


@pytest.mark.parametrize("history", ["4311", 4311, [], [[10], []], [10, [20]], [(10, 1, 2)]])
def test_a_history_of_another_shape_is_refused(history):
    with pytest.raises(EnsuiteError, match="history"):
        popular().recommend(history)


def test_exclude_of_another_name_is_refused():
    with pytest.raises(EnsuiteError, match="exclude = 'sen'"):
        popular().recommend([10], exclude="sen")


def test_scores_that_are_not_numbers_are_an_error():
    recommender = popular()
    recommender.engine._catalogue = torch.full((6,), torch.nan)
    with pytest.raises(EnsuiteError, match="NaN"):
        recommender.recommend([10], k=1)


def test_titles_in_table_and_dict():
    answer = popular(titles=["Ten", "Twenty", "T" * 90, None, "Fifty"]).recommend([20], k=2)
    assert answer.titles == ["T" * 90, "Ten"]
    assert answer.to_dict()["items"][1] == {"item_id": 10, "title": "Ten", "score": 5.0}
    lines = repr(answer).splitlines()
    assert lines[0].split() == ["item_id", "title", "score"]
    assert lines[2].split() == ["2", "10", "Ten", "5"]
    assert len(lines[1]) < 90


def test_similar_is_the_cosine_of_item_vectors():
    torch.manual_seed(0)
    model = SASRec(SASRec.Config(dim=8), 5)
    answer = Recommender(model, IDS).similar(20, k=4)
    assert 20 not in answer.ids
    vectors = model.item_vectors().detach()
    cosine = torch.cosine_similarity(vectors[2], vectors)[1:]
    assert answer.scores == pytest.approx(sorted(cosine[[0, 2, 3, 4]].tolist(), reverse=True), abs=1e-6)
    with pytest.raises(EnsuiteError, match="Popularity has no item vectors"):
        popular().similar(20)
    with pytest.raises(EnsuiteError, match="unknown"):
        Recommender(model, IDS).similar(99)


def test_as_many_ids_as_items():
    with pytest.raises(EnsuiteError, match="2 item ids for a model of 5 items"):
        popular(ids=[1, 2])


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(
        tmp_path / "data",
        offsets=np.array([0, 2, 5]),
        item_idx=np.array([1, 2, 3, 1, 2]),
        time=np.array([1000, 2000, 1000, 5000, 6000]),
        split=Split(*[np.array([2, 3])] * 3),
        items=pl.DataFrame({"item_id": ["a", "b", "c"]}),
        users=pl.DataFrame({"user_id": [7, 8]}),
        columns={},
        card={"time_unit": "ms", "split": {"kind": "leave-one-out", "targets": "next"}},
    )


def test_the_history_of_a_user_in_the_data(dataset):
    assert user_history(dataset, "8") == [("c", 1000), ("a", 5000), ("b", 6000)]
    assert user_history(dataset, 8, before=6000) == [("c", 1000), ("a", 5000)]
    with pytest.raises(EnsuiteError, match="no user 9; user ids look like 7, 8"):
        user_history(dataset, 9)
    with pytest.raises(EnsuiteError, match="no event before 1000"):
        user_history(dataset, 8, before=1000)


def test_requests_side_by_side_have_their_own_rules():
    recommender = popular()
    answers = recommender.recommend_each(
        [
            Ask([20], k=1),
            Ask([20], k=2, exclude="none"),
            Ask([999], k=1),
            Ask([20], k=1, candidates=[40, 50]),
            Ask([20], k=9),
            Ask([20, (30, 5)], k=1),
            Ask([(10, 9)], k=1, at=5),
        ]
    )
    assert [answers[number].ids for number in (0, 1, 3)] == [[30], [20, 30], [50]]
    assert isinstance(answers[2], NothingKnown)
    fields = [answer.field for answer in answers if isinstance(answer, BadRequest)]
    assert fields == ["history", "k", "history", "at"]


def test_times_or_none_do_not_disturb_each_other():
    recommender, model = spy(timed=False)
    recommender.recommend_each([Ask([10], k=1), Ask([(20, 7)], k=1), Ask([30, 40], k=1)])
    assert model.read.times.tolist() == [[7]]  # the last group
    answers = recommender.recommend_each([Ask([10], k=1), Ask([(20, 7, "a")], k=1), Ask([(20, 7)], k=1)])
    assert [answer.ids for answer in answers] == [[20], [50], [50]]


def test_a_recommender_takes_new_items_and_titles():
    torch.manual_seed(0)
    recommender = Recommender(SASRec(SASRec.Config(dim=8), 5), IDS)
    grown = recommender.with_items(["new"], [[20, 30]], ["New"])
    assert grown.recommend([10], k=5).ids.count("new") == 1
    assert grown.recommend(["new"], k=5, exclude="none").titles.count("New") == 1
    assert (grown.knows("new"), recommender.knows("new")) == (True, False)
    assert recommender.with_titles({20: "Twenty"}).title("20") == "Twenty"
    with pytest.raises(EnsuiteError, match="Popularity cannot take new items"):
        popular().with_items(["new"], [[20]], [None])
    recommender.engine = object()
    with pytest.raises(EnsuiteError, match="fixed"):
        recommender.with_items(["new"], [[20]], [None])
