"""Transitions are counted within users, within the training part, and no further apart than asked for."""

from __future__ import annotations

import numpy as np
import pytest

from ensuite.data.dataset import Dataset, Events
from ensuite.data.transitions import count_transitions


def walks(*sequences: list[int]) -> Events:
    ends = np.cumsum([len(s) for s in sequences])
    items = np.concatenate([np.array(s, np.int32) for s in sequences])
    return Events(ends - [len(s) for s in sequences], ends, items, None, 1.0, 5)


def pairs(events: Events, **settings: int) -> dict[tuple[int, int], float]:
    table = count_transitions(events, **settings).tocoo()
    return {(int(i), int(j)): float(c) for i, j, c in zip(table.row, table.col, table.data)}


LOG = [1, 2, 3, 2], [5], [2, 3]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {(1, 2): 1, (2, 3): 2, (3, 2): 1}),
        ({"span": 2}, {(1, 2): 1, (2, 3): 2, (3, 2): 1, (1, 3): 1, (2, 2): 1}),
        ({"span": 2, "decay": True}, {(1, 2): 1, (2, 3): 2, (3, 2): 1, (1, 3): 0.5, (2, 2): 0.5}),
        ({"last": 2}, {(3, 2): 1, (2, 3): 1}),
        ({"last": 3, "span": 9}, {(3, 2): 1, (2, 3): 2, (2, 2): 1}),
        ({"last": 1}, {}),
    ],
    ids=str,
)
def test_counts_by_hand(settings: dict[str, int], wanted: dict[tuple[int, int], float]):
    assert pairs(walks(*LOG), **settings) == wanted


def test_what_is_held_out_adds_no_edge(cycle: Dataset):
    train, everything = cycle.events("train"), cycle.events("all")
    assert len(train.item_idx) == len(everything.item_idx)  # the columns are shared, the ends differ
    n_pairs = (train.lengths - 1).sum()
    assert count_transitions(train).sum() == n_pairs
    assert count_transitions(everything).sum() == n_pairs + 2 * len(train.lengths)
