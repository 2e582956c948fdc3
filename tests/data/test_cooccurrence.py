"""Pairs of items that occur near each other, against counts by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from ensuite.data.cooccurrence import PairsConfig, find_pairs
from ensuite.data.dataset import Events


def log(sequences: list[list[int]], n_items: int) -> Events:
    lengths = np.array([len(sequence) for sequence in sequences])
    ends = lengths.cumsum()
    items = np.concatenate([np.asarray(sequence, np.int32) for sequence in sequences])
    return Events(ends - lengths, ends, items, None, 1.0, n_items)


def drawn(n_users: int = 30, n_items: int = 12) -> list[list[int]]:
    rng = np.random.default_rng(0)
    popular = 1 + (n_items * rng.random((n_users, 9)) ** 2).astype(int)
    return [row[: rng.integers(1, 10)].tolist() for row in popular]


def meetings(sequences: list[list[int]], window: int) -> Counter:
    """Count (item, neighbour, distance), both ways."""
    found: Counter = Counter()
    for sequence in sequences:
        for i, a in enumerate(sequence):
            for j in range(i + 1, min(i + window, len(sequence) - 1) + 1):
                if a != sequence[j]:
                    found[a, sequence[j], j - i] += 1
                    found[sequence[j], a, j - i] += 1
    return found


@pytest.mark.parametrize("weigh", ["pmi", "decay"])
def test_weights_by_hand(weigh):
    sequences = drawn()
    times: Counter = Counter()
    faded: Counter = Counter()
    for (a, b, distance), n in meetings(sequences, 3).items():
        times[a, b] += n
        faded[a, b] += n * 0.8 ** (distance - 1)
    of = Counter()
    for (a, _), n in times.items():
        of[a] += n
    total = sum(of.values())
    if weigh == "pmi":
        pmi = {p: math.log(n * total / (of[p[0]] * of[p[1]])) for p, n in times.items() if n >= 2}
        most = max(pmi.values())
        expected = {p: 0.3 + 0.7 * value / most for p, value in pmi.items() if value > 0}
    else:
        expected = {p: faded[p] / n for p, n in times.items() if n >= 2}
    found = find_pairs(log(sequences, 12), PairsConfig(weigh=weigh)).tocoo()
    assert 20 < len(expected) < len(times)
    assert {(a, b): w for a, b, w in zip(found.row, found.col, found.data)} == pytest.approx(expected)


def test_an_item_keeps_its_heaviest_pairs():
    every = find_pairs(log(drawn(), 12), PairsConfig(weigh="decay")).toarray()
    few = find_pairs(log(drawn(), 12), PairsConfig(weigh="decay", per_item=3)).toarray()
    assert ((few > 0).sum(1) == np.minimum((every > 0).sum(1), 3)).all()
    for row, kept in zip(every, few):
        assert kept[kept > 0].min(initial=2) >= np.sort(row)[-3:].min(initial=2, where=np.sort(row)[-3:] > 0)


def test_none_and_users_apart():
    assert find_pairs(log(drawn(), 12), PairsConfig(weigh="none")).nnz == 0
    apart = log([[1], [2], [1], [2]], 2)
    assert find_pairs(apart, PairsConfig(min_count=1)).nnz == 0


def test_popular_neighbours_can_be_left_out():
    plain = PairsConfig(weigh="decay", popular_share=0.12)
    events = log(drawn(), 12)
    popular = np.bincount(events.item_idx, minlength=13) > 0.12 * len(events.item_idx)
    every = find_pairs(events, plain).toarray() > 0
    none = find_pairs(events, PairsConfig(weigh="decay", popular_share=0.12, popular_dropout=1)).toarray() > 0
    assert 0 < popular.sum() < 12
    assert every[:, popular].any()
    assert not none[:, popular].any()
    assert (none[:, ~popular] == every[:, ~popular]).all()
