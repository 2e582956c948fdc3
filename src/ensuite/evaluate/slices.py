"""Slices: the same metric for some of the targets or some of the users.

    head, tail          targets among the 20 % of the items with most training events (ties: the lower item
    row is
                        head), and all the others
    cold items          targets without a training event
    repeated, new items targets that the user's history holds, and that it does not; where there are repeats.
                        With seen items left out of the ranking, repeats cannot be reached
    popularity 1-9, ... targets by the number of training events: with the cold ones, they part all targets
    cold users          users without a training event
    history 1-5, ...    cases by the number of events before the target
    transition 0, ...   targets by how often they came right after the history's last item: 0, 1-2, 3+ times

What is popular or cold, and what came after what, is counted on training events alone.
"""

from __future__ import annotations

import math

import numpy as np

from ensuite.data.dataset import Events
from ensuite.data.transitions import count_transitions
from ensuite.evaluate.beyond import count_items
from ensuite.evaluate.ranks import Ranks
from ensuite.evaluate.scoring import ragged_rows

HEAD_SHARE = 0.2
POPULARITY_BUCKETS = ((1, 9), (10, 29), (30, 59), (60, 99), (100, None))  # those of H2Rec's code
HISTORY_BUCKETS = ((1, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, None))
TRANSITION_BUCKETS = ((0, 0), (1, 2), (3, None))


def head_items(popularity: np.ndarray, share: float = HEAD_SHARE) -> np.ndarray:
    """Return which item rows are head: [V + 1] bool.

    >>> head_items(np.array([0, 5, 9, 9, 1, 0]), 0.4).nonzero()[0].tolist()
    [2, 3]
    """
    out = np.zeros(len(popularity), bool)
    n_items = len(popularity) - 1
    out[1 + np.argsort(-popularity[1:], kind="stable")[: math.ceil(share * n_items)]] = True
    return out


def transitions_to_targets(ranks: Ranks, train: Events) -> np.ndarray:
    """Return how often each target followed its history's last item in training: [T] float64.

    Histories begin with their user's first event, and ``train`` holds the columns of the whole log, as
    ``dataset.events("train")`` does.
    """
    last = train.item_idx[train.offsets[ranks.user] + ranks.history_length - 1]  # [C]
    counts = count_transitions(train)
    return np.asarray(counts[last[ranks.owner], ranks.target]).ravel()


def repeats_of_history(ranks: Ranks, train: Events) -> np.ndarray:
    """Return which targets their own histories hold, however far back: [T] bool; see
    `transitions_to_targets` on what is read."""
    start = train.offsets[ranks.user]
    case, rows = ragged_rows(start, start + ranks.history_length)
    width = ranks.n_items + 1
    return np.isin(ranks.owner * width + ranks.target, case * width + train.item_idx[rows])


def slice_ranks(ranks: Ranks, train: Events) -> dict[str, Ranks]:
    """Return the ranks of every slice that has at least one case; ``train`` is the training view of the
    log."""
    popularity = count_items(train)
    head = head_items(popularity)[ranks.target]
    repeated = repeats_of_history(ranks, train)
    out = {
        "head items": ranks.restrict(head),
        "tail items": ranks.restrict(~head),
        "cold items": ranks.restrict(popularity[ranks.target] == 0),
        "cold users": ranks.take(train.lengths[ranks.user] == 0),
    }
    if repeated.any():
        out |= {"repeated items": ranks.restrict(repeated), "new items": ranks.restrict(~repeated)}
    for low, high in POPULARITY_BUCKETS:
        within = (popularity[ranks.target] >= low) & (popularity[ranks.target] <= (high or np.inf))
        out[f"popularity {_span(low, high)}"] = ranks.restrict(within)
    for low, high in HISTORY_BUCKETS:
        within = (ranks.history_length >= low) & (ranks.history_length <= (high or np.inf))
        out[f"history {_span(low, high)}"] = ranks.take(within)
    followed = transitions_to_targets(ranks, train)
    for low, high in TRANSITION_BUCKETS:
        within = (followed >= low) & (followed <= (np.inf if high is None else high))
        out[f"transition {_span(low, high)}"] = ranks.restrict(within)
    return {name: part for name, part in out.items() if len(part)}


def _span(low: int, high: int | None) -> str:
    if high is None:
        return f"{low}+"
    return str(low) if low == high else f"{low}-{high}"
