from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from evaluate.fakes import DotScorer, TableScorer, log, random_log

from ensuite.errors import EnsuiteError
from ensuite.evaluate.beyond import category_vectors, compute_beyond, count_items, diversity, gini
from ensuite.evaluate.metrics import compute_metrics
from ensuite.evaluate.ranks import compute_ranks
from ensuite.evaluate.sampled import compute_sampled_ranks, draw_negatives
from ensuite.evaluate.slices import head_items, slice_ranks, transitions_to_targets


def test_lists_by_hand():
    events, cases = log([[1], [2]], [[3], [4]], 5)
    ranks = compute_ranks(TableScorer([0, 5, 4, 3, 2, 1]), events, cases, top=2)
    assert ranks.lists is not None
    assert ranks.lists.tolist() == [[2, 3], [1, 3]]
    popularity = np.array([0, 3, 1, 0, 0, 0])
    names = ["coverage@2", "coverage@1", "arp@2", "novelty@2", "popularity-lift@2", "gini@2"]
    got = compute_beyond(ranks, names, popularity=popularity, events=events, cases=cases)
    share = np.array([2, 1, 4, 1]) / (4 + 5)
    assert got["coverage@2"] == pytest.approx(3 / 5)
    assert got["coverage@1"] == pytest.approx(2 / 5)
    assert got["arp@2"] == 1.0
    assert got["novelty@2"] == pytest.approx(-np.log2(share).mean())
    assert got["popularity-lift@2"] == pytest.approx(
        1.0 / 2.0 - 1
    )  # histories hold items 1 and 2: (3 + 1) / 2
    assert got["gini@2"] == pytest.approx(gini(np.array([1, 1, 2, 0, 0])))


def test_diversity_by_hand():
    vectors = np.array([[0, 0], [1, 0], [1, 0], [0, 1]], float)
    assert diversity(np.array([[1, 2]]), vectors) == pytest.approx(0.0)
    assert diversity(np.array([[1, 3]]), vectors) == pytest.approx(1.0)
    assert diversity(np.array([[1, 2, 3]]), vectors) == pytest.approx(2 / 3)
    assert diversity(np.array([[1, 3, 0], [2, 0, 0]]), vectors) == pytest.approx(1.0)  # one item is no list


def test_categories():
    items = pl.DataFrame({"item_id": [1, 2, 3], "genres": ["Comedy|Drama", "Drama", None]})
    assert category_vectors(items).tolist() == [[0, 0], [1, 1], [0, 1], [0, 0]]
    lists = pl.DataFrame({"item_id": [1, 2], "kind": [["a"], ["b", "a"]]})
    assert category_vectors(lists, "kind").tolist() == [[0, 0], [1, 0], [1, 1]]
    with pytest.raises(EnsuiteError, match="did you mean 'genres'"):
        category_vectors(items, "genre_s")
    with pytest.raises(EnsuiteError, match="none of the columns"):
        category_vectors(items.select("item_id"))


def test_missing_lists_and_vectors_are_said():
    events, cases = log([[1]], [[3]], 5)
    model, popularity = TableScorer([0, 5, 4, 3, 2, 1]), np.zeros(6)
    ranks = compute_ranks(model, events, cases, top=2)
    with pytest.raises(EnsuiteError, match="top=3"):
        compute_beyond(ranks, ["coverage@3"], popularity=popularity)
    with pytest.raises(EnsuiteError, match="vector per item"):
        compute_beyond(ranks, ["diversity@2"], popularity=popularity)
    with pytest.raises(EnsuiteError, match="larger than the 5 items"):
        compute_beyond(ranks, ["coverage@6"], popularity=popularity)


def test_popularity_counts_the_given_view_only():
    events, cases = log([[1, 1, 2]], [[3]], 3)
    train = type(events)(events.offsets, cases.history_end, events.item_idx, None, 1.0, 3)
    assert count_items(train).tolist() == [0, 2, 1, 0]


def test_slices():
    events, cases = log([[1] * 3 + [2], [1] * 7, [4]], [[3], [1], [2]], 5)
    train = type(events)(events.offsets, np.array([4, 12, 13]), events.item_idx, None, 1.0, 5)
    ranks = compute_ranks(TableScorer([0, 5, 4, 3, 2, 1]), events, cases, exclude="none")
    assert np.flatnonzero(head_items(count_items(train))).tolist() == [1]
    parts = {name: part.user.tolist() for name, part in slice_ranks(ranks, train).items()}
    assert parts == {
        "head items": [1],
        "tail items": [0, 2],
        "cold items": [0],
        "cold users": [2],
        "repeated items": [1],
        "new items": [0, 2],
        "popularity 1-9": [2],
        "popularity 10-29": [1],
        "history 1-5": [0, 2],
        "history 6-10": [1],
        "transition 0": [0, 2],
        "transition 3+": [1],
    }


def test_bins_of_popularity_part_the_targets():
    rng = np.random.default_rng(0)
    histories = (rng.geometric(0.04, (200, 20)) % 95 + 1).tolist()  # the first items come often
    events, cases = log(histories, [[t] for t in rng.integers(1, 99, 200)], 98)
    train = type(events)(events.offsets, cases.history_end, events.item_idx, None, 1.0, 98)
    ranks = compute_ranks(DotScorer(98), events, cases, exclude="none")
    found = {name: part for name, part in slice_ranks(ranks, train).items() if name.startswith("popularity")}
    found["cold items"] = slice_ranks(ranks, train)["cold items"]
    limits = {"1-9": (1, 9), "10-29": (10, 29), "30-59": (30, 59), "60-99": (60, 99), "100+": (100, 9999)}
    assert list(found) == [*(f"popularity {span}" for span in limits), "cold items"]
    for span, (low, high) in limits.items():
        counts = count_items(train)[found[f"popularity {span}"].target]
        assert low <= counts.min() <= counts.max() <= high
    assert sorted(np.concatenate([part.case for part in found.values()])) == list(range(200))
    parts = [len(part) * compute_metrics(part, ["hr@10"])["hr@10"] for part in found.values()]
    assert sum(parts) / 200 == pytest.approx(compute_metrics(ranks, ["hr@10"])["hr@10"])


def test_slices_by_transition():
    """In training 2 comes after 1 three times and 3 after 2 twice; what follows in test does not count."""
    histories = [[1, 2, 1], [1, 2, 3], [1, 2, 3, 2], [5, 4]]
    events, cases = log(histories, [[2, 4], [4], [3], [1]], 5)
    ends = events.offsets + np.array([2, 3, 3, 0])  # of the training part: shorter than the histories
    train = type(events)(events.offsets, ends, events.item_idx, None, 1.0, 5)
    ranks = compute_ranks(TableScorer([0, 5, 4, 3, 2, 1]), events, cases, exclude="none")
    followed = transitions_to_targets(ranks, train)
    assert list(zip(ranks.target.tolist(), followed.tolist())) == [(2, 3), (4, 0), (4, 0), (3, 2), (1, 0)]
    parts = slice_ranks(ranks, train)
    by_count = {n: list(zip(p.user[p.owner], p.target)) for n, p in parts.items() if "transition" in n}
    assert by_count == {
        "transition 0": [(0, 4), (1, 4), (3, 1)],
        "transition 1-2": [(2, 3)],
        "transition 3+": [(0, 2)],  # of the first user's two targets one
    }


@pytest.mark.parametrize("weighted", [False, True])
def test_negatives_are_fresh_and_seeded(weighted: bool):
    events, cases = random_log(100, 120)
    weights = np.arange(121.0) if weighted else None
    got = draw_negatives(events, cases, 50, weights, seed=1)
    assert np.array_equal(got, draw_negatives(events, cases, 50, weights, seed=1))
    assert not np.array_equal(got, draw_negatives(events, cases, 50, weights, seed=2))
    for c in range(len(cases)):
        taken = set(events.item_idx[cases.history_start[c] : cases.target_end[c]].tolist())
        assert len(set(got[c])) == 50
        assert not taken & set(got[c].tolist())
        assert got[c].min() >= 1
    assert (got.mean() > 65) == weighted  # heavier items are drawn more often


def test_negatives_follow_their_weights():
    events, cases = log([[1]] * 20000, [[2]] * 20000, 5)
    got = draw_negatives(events, cases, 1, np.array([0, 9, 9, 1, 2, 1]), seed=0)
    share = np.bincount(got[:, 0], minlength=6) / len(got)
    assert share == pytest.approx([0, 0, 0, 0.25, 0.5, 0.25], abs=0.015)


def test_too_many_negatives():
    events, cases = log([[1], [1, 2]], [[3], [4]], 6)
    assert sorted(draw_negatives(events, cases, 3)[1].tolist()) == [3, 5, 6]
    with pytest.raises(EnsuiteError, match="only 3 items are left for user row 1"):
        draw_negatives(events, cases, 4)


def test_sampling_everything_is_full_ranking():
    rng = np.random.default_rng(0)
    histories = [rng.choice(np.arange(1, 41), 5, replace=False).tolist() for _ in range(30)]
    events, cases = log([h[:4] for h in histories], [h[4:] for h in histories], 40)
    model = DotScorer(40, whole=True)
    full = compute_ranks(model, events, cases)
    everything = draw_negatives(events, cases, 35)
    sampled = compute_sampled_ranks(model, events, cases, everything, "uniform-35", item_block=7)
    assert np.array_equal(full.rank, sampled.rank)
    assert np.array_equal(full.ties, sampled.ties)
    assert (
        compute_metrics(sampled, ["ndcg@10/uniform-35"])["ndcg@10/uniform-35"]
        == compute_metrics(full, ["ndcg@10"])["ndcg@10"]
    )
    few = compute_sampled_ranks(model, events, cases, everything[:, :5], "uniform-5")
    assert (few.rank <= full.rank).all()
    with pytest.raises(EnsuiteError, match="larger than the 6 items"):
        compute_metrics(few, ["hr@10/uniform-5"])


def test_a_constant_scorer_wins_nothing_among_samples():
    events, cases = random_log(50, 200)
    negatives = draw_negatives(events, cases, 100)
    ranks = compute_sampled_ranks(TableScorer(torch.zeros(201)), events, cases, negatives, "uniform-100")
    assert (ranks.rank == 51).all()
    assert compute_metrics(ranks, ["hr@1/uniform-100"]) == {"hr@1/uniform-100": 0.0}
