"""Slices: the same metric for some of the targets or some of the users.

    head, tail          targets among the 20 % of the items with most training events (ties: the lower item
    row is
                        head), and all the others
    cold items          targets without a training event
    cold users          users without a training event
    history 1-5, ...    cases by the number of events before the target

What is popular or cold is counted on training events alone.
"""

from __future__ import annotations

import math

import numpy as np

from ensuite.data.dataset import Events
from ensuite.evaluate.beyond import count_items
from ensuite.evaluate.ranks import Ranks

HEAD_SHARE = 0.2
HISTORY_BUCKETS = ((1, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, None))


def head_items(popularity: np.ndarray, share: float = HEAD_SHARE) -> np.ndarray:
    """Return which item rows are head: [V + 1] bool.

    >>> head_items(np.array([0, 5, 9, 9, 1, 0]), 0.4).nonzero()[0].tolist()
    [2, 3]
    """
    out = np.zeros(len(popularity), bool)
    n_items = len(popularity) - 1
    out[1 + np.argsort(-popularity[1:], kind="stable")[: math.ceil(share * n_items)]] = True
    return out


def slice_ranks(ranks: Ranks, train: Events) -> dict[str, Ranks]:
    """Return the ranks of every slice that has at least one case."""
    popularity = count_items(train)
    head = head_items(popularity)[ranks.target]
    out = {
        "head items": ranks.restrict(head),
        "tail items": ranks.restrict(~head),
        "cold items": ranks.restrict(popularity[ranks.target] == 0),
        "cold users": ranks.take(train.lengths[ranks.user] == 0),
    }
    for low, high in HISTORY_BUCKETS:
        name = f"history {low}-{high}" if high else f"history {low}+"
        out[name] = ranks.take((ranks.history_length >= low) & (ranks.history_length <= (high or np.inf)))
    return {name: part for name, part in out.items() if len(part)}
