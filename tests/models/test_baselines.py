"""Scores of the counted baselines, against numbers worked out by hand."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ensuite.data.batches import History
from ensuite.data.dataset import Events
from ensuite.errors import EnsuiteError
from ensuite.models.item_knn import ItemKNN, ItemKNNConfig
from ensuite.models.markov import Markov, MarkovConfig
from ensuite.models.personal_repeat import PersonalRepeat, PersonalRepeatConfig
from ensuite.models.popularity import Popularity, PopularityConfig
from ensuite.models.recency import Recency, RecencyConfig

DAY = 86_400


def make_events(
    users: list[list[int]], n_items: int, time: list[int] | None = None, held_out: int = 0
) -> Events:
    """Events of the users' items in order; the last ``held_out`` of each user lie beyond the view."""
    stops = np.cumsum([len(user) for user in users])
    starts = stops - [len(user) for user in users]
    items = np.concatenate(users).astype(np.int32)
    return Events(starts, stops - held_out, items, None if time is None else np.array(time), 1.0, n_items)


def histories(*rows: list[int], pad: int = 0) -> History:
    width = max(map(len, rows)) + pad
    return History(torch.tensor([row + [0] * (width - len(row)) for row in rows]))


def scores(model, history: History, first: int = 1, last: int | None = None) -> list[list[float]]:
    block = model.scorer(history, model.catalogue())(first, model.n_items + 1 if last is None else last)
    assert block.dtype == torch.float32
    return block.tolist()


def fitted(cls, events: Events, **values):
    model = cls(cls.Config(**values), events.n_items)
    model.fit(events)
    return model


def test_popularity_counts_the_training_view_only():
    events = make_events([[1, 2, 3], [2, 2, 4]], 4, held_out=1)
    assert scores(fitted(Popularity, events), histories([1], [4, 4])) == [[1, 3, 0, 0]] * 2


def test_popularity_of_the_last_days_ends_with_the_training_events():
    time = [4 * DAY, 5 * DAY, 9 * DAY, 4 * DAY + 1, 5 * DAY, 99 * DAY]
    events = make_events([[1, 2, 3], [2, 4, 1]], 4, time, held_out=1)
    # the training events end on day 5, not on day 99: its last day holds item 2 twice and item 4 once
    assert scores(fitted(Popularity, events, last_days=1), histories([1])) == [[0, 2, 0, 1]]


def test_popularity_window_respects_the_unit_of_time():
    time = np.array([0, 5 * DAY, 6 * DAY]) * 1000
    events = Events(np.array([0]), np.array([3]), np.array([1, 2, 3], np.int32), time, 1e-3, 3)
    assert scores(fitted(Popularity, events, last_days=2), histories([1])) == [[0, 1, 1]]


def test_popularity_of_the_last_days_needs_times():
    with pytest.raises(EnsuiteError, match=r"last_days = 7.*needs times.*--time"):
        fitted(Popularity, make_events([[1, 2]], 2), last_days=7)


def test_recency_repeats_the_last_items_then_the_popular_ones():
    events = make_events([[1, 2, 3], [2, 3, 3], [5, 3]], 5)  # counts: 1, 2, 4, 0, 1
    model = fitted(Recency, events, max_length=3)
    short, long = scores(model, histories([4, 1], [5, 1, 4, 1]))
    assert short == pytest.approx([3, 2 / 5, 4 / 5, 2, 1 / 5])
    assert long == pytest.approx([3, 2 / 5, 4 / 5, 2, 1 / 5])  # 5 is out of reach, 1 counts where it was last


def test_recency_blocks_are_slices_of_the_whole():
    model = fitted(Recency, make_events([[1, 2, 3], [2, 3, 3]], 6))
    history = histories([4, 1, 6], [2])
    whole = scores(model, history, 0, 7)
    for first, last in [(0, 2), (2, 5), (5, 7)]:
        assert scores(model, history, first, last) == [row[first:last] for row in whole]


def test_markov_is_the_smoothed_share_of_transitions():
    events = make_events(
        [[1, 2, 3], [1, 2], [1, 3], [4]], 4
    )  # 1 -> 2 twice, 1 -> 3, 2 -> 3; counts 3, 2, 2, 1 of 8
    model = fitted(Markov, events, smoothing=2.0)
    after_1, after_4 = scores(model, histories([4, 1], [4]))
    p = [3 / 8, 2 / 8, 2 / 8, 1 / 8]
    assert after_1 == pytest.approx([(c + 2 * q) / (3 + 2) for c, q in zip([0, 2, 1, 0], p)])
    assert after_4 == pytest.approx(p)  # nothing ever came after 4: popularity
    assert sum(after_1) == pytest.approx(1)


def test_markov_never_joins_two_users():
    model = fitted(Markov, make_events([[1, 2], [3, 4]], 4), smoothing=1e-6)
    assert scores(model, histories([2]))[0] == pytest.approx([0.25] * 4)


def test_markov_with_more_items_and_steps():
    events = make_events([[1, 2, 3]], 3)  # within two steps: 1 -> 2 (1), 1 -> 3 (1/2), 2 -> 3 (1)
    model = fitted(Markov, events, last=2, decay=0.25, steps=2, smoothing=1e-9)
    assert scores(model, histories([1, 2]))[0] == pytest.approx([0, 0.25 * 2 / 3, 1 + 0.25 / 3], abs=1e-6)


def test_markov_weighs_each_back_off_and_no_padding():
    events = make_events([[1, 2, 3]], 3)  # 1 -> 2, 2 -> 3; every p is 1/3; nothing follows 3
    model = fitted(Markov, events, last=2, decay=0.5, smoothing=1.0)
    both, one = scores(model, histories([2, 1], [3]))
    first, second = [1 / 6, 4 / 6, 1 / 6], [1 / 6, 1 / 6, 4 / 6]  # after 1, after 2
    assert both == pytest.approx([a + 0.5 * b for a, b in zip(first, second)])
    assert one == pytest.approx([1 / 3] * 3)


def test_item_knn_sums_cosines_and_keeps_popularity_below():
    pytest.importorskip("implicit")
    events = make_events([[1, 2], [1, 2, 2], [1, 3], [4, 5], [4]], 6)  # users of 1: 3, of 2: 2, of 3: 1
    model = fitted(ItemKNN, events)
    both, order = scores(model, histories([2, 3], [2, 2, 1]))
    assert both[0] == pytest.approx(2 / math.sqrt(2 * 3) + 1 / math.sqrt(1 * 3))
    # 2 and 3 share no user, and an item is no neighbour of its own: popularity, below every similarity
    assert both[1:] == pytest.approx([3 / 4 - 1, 1 / 4 - 1, 2 / 4 - 1, 1 / 4 - 1, 0 - 1])
    assert order[0] == pytest.approx(2 / math.sqrt(6))
    assert order[1] == pytest.approx(2 / math.sqrt(6))  # a repeated item counts once
    assert order[2] == pytest.approx(1 / math.sqrt(3))
    assert order[3:] == pytest.approx([2 / 4 - 1, 1 / 4 - 1, 0 - 1])


def test_item_knn_decay_weighs_the_last_occurrence():
    pytest.importorskip("implicit")
    model = fitted(ItemKNN, make_events([[1, 2], [3, 4]], 4), half_life=1.0)
    (row,) = scores(model, histories([3, 1, 3], pad=2))
    assert row[1] == pytest.approx(0.5)
    assert row[3] == pytest.approx(1.0)


def test_item_knn_keeps_k_neighbours_besides_the_item_itself():
    pytest.importorskip("implicit")
    events = make_events([[1, 2, 3], [1, 2], [1, 4, 2]], 4)
    model = fitted(ItemKNN, events, neighbours=1)
    assert np.diff(model.indptr.numpy()).tolist() == [0, 1, 1, 1, 1]
    assert model.indices[0] == 2


@pytest.mark.parametrize("similarity", ["tfidf", "bm25"])
def test_item_knn_other_similarities_trust_a_user_of_few_items_more(similarity):
    pytest.importorskip("implicit")
    events = make_events([[2, 1, *range(5, 12)], [2, 3]], 20)  # 2 shares one user with 1, and one with 3
    (plain,) = scores(fitted(ItemKNN, events), histories([2]))
    (row,) = scores(fitted(ItemKNN, events, similarity=similarity), histories([2]))
    assert plain[0] == pytest.approx(plain[2])
    assert row[2] > row[0] > 0


def test_item_knn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "implicit", None)
    with pytest.raises(EnsuiteError, match=r"pip install 'ensuite\[knn\]'"):
        fitted(ItemKNN, make_events([[1, 2]], 2))


@pytest.mark.parametrize("cls", [Popularity, Recency, Markov, ItemKNN])
def test_nothing_beyond_the_training_view_is_read(cls):
    if cls is ItemKNN:
        pytest.importorskip("implicit")
    seen = [[1, 2, 3], [2, 3], [4, 1]]
    whole = make_events([[*user, 5, 5] for user in seen], 5, held_out=2)
    history = histories([1, 2], [4])
    assert scores(fitted(cls, whole), history) == scores(fitted(cls, make_events(seen, 5)), history)


@pytest.mark.parametrize("cls", [Popularity, Recency, Markov, ItemKNN])
def test_saved_buffers_come_back_at_their_own_size(cls, tmp_path):
    if cls is ItemKNN:
        pytest.importorskip("implicit")
    events = make_events([[1, 2, 3], [2, 3], [4, 1]], 4)
    model, history = fitted(cls, events), histories([1, 2], [4])
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    fresh = cls(cls.Config(), 4)
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert scores(fresh, history) == scores(model, history)


@pytest.mark.parametrize("cls", [Markov, ItemKNN])
def test_an_unfitted_table_says_so(cls):
    with pytest.raises(RuntimeError, match="not been fitted"):
        cls(cls.Config(), 3).catalogue()


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (PopularityConfig, {"last_days": -1}),
        (RecencyConfig, {"max_length": 0}),
        (MarkovConfig, {"smoothing": 0}),
        (MarkovConfig, {"last": 0}),
        (MarkovConfig, {"decay": 1.5}),
        (ItemKNNConfig, {"neighbours": 0}),
        (ItemKNNConfig, {"half_life": -2}),
    ],
)
def test_values_without_meaning_are_refused(config, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        config(**values)


def test_personal_repeat_sums_what_each_listen_left():
    events = make_events([[1, 2, 4, 4]], 5, [0, 0, 0, 0])
    history = History(
        torch.tensor([[2, 3, 2, 0], [5, 0, 0, 0]]),
        torch.tensor([[0, 96, 84, 0], [7, 0, 0, 0]]),
        torch.tensor([[96, 84, 100, 0], [7, 0, 0, 0]]),
    )
    two, three = 100**-0.5 + 16**-0.5, 4**-0.5
    first, second = scores(fitted(PersonalRepeat, events), history)
    assert first[1:3] == pytest.approx([two / (two + three), three / (two + three)])
    # never heard: below, by popularity (1, 1, 0, 2, 0 training events)
    assert 0 > first[3] > first[0] > first[4]
    assert second[4] == 1.0  # asked for at the moment of the listen itself: no division by zero
    frequency = fitted(PersonalRepeat, events, decay=0)
    assert not frequency.needs_times()
    assert scores(frequency, History(history.items))[0][1:3] == pytest.approx([2 / 3, 1 / 3])
    assert scores(fitted(PersonalRepeat, events, max_length=1, decay=0), histories([2, 3]))[0][2] == 1.0


def test_personal_repeat_prefers_the_recent_as_the_exponent_grows():
    events = make_events([[1, 2, 3]], 3, [0, 0, 0])
    history = History(*(torch.tensor([row]) for row in ([1, 1, 2], [0, 10, 900], [10, 900, 1000])))
    orders = [np.argmax(scores(fitted(PersonalRepeat, events, decay=d), history)[0]) for d in (0.0, 0.1, 1.0)]
    assert orders == [0, 0, 1]
    with pytest.raises(ValueError, match="decay = -1"):
        PersonalRepeatConfig(decay=-1)
