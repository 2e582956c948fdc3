"""Which items occur near each other: pairs with weights, counted on the events that are given, no others."""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp

from ensuite.config import config
from ensuite.data.dataset import Events

FADING = 0.8
"""With `weigh = decay`, what each event more between two items leaves of a pair's weight."""


@config
class PairsConfig:
    """Which neighbours make a pair, and what it weighs; defaults are H2Rec's."""

    weigh: Literal["pmi", "decay", "none"] = "pmi"
    """pmi: the pointwise mutual information, where it is positive. decay: 0.8 to the power of the events
    between the two, the mean over their meetings. none: no pairs at all."""
    window: int = 3
    """Largest distance of two events that meet."""
    min_count: int = 2
    """Least number of meetings."""
    per_item: int = 50
    """Most pairs of an item: those of largest weight."""
    floor: float = 0.3
    """Least weight of a pair; the largest is 1."""
    popular_share: float = 0.01
    """An item with a larger share of all events is popular."""
    popular_dropout: float = 0.0
    """Share of the pairs with a popular neighbour that is left out (an option of H2Rec's code, there 0.5)."""

    def __post_init__(self) -> None:
        for name in ("window", "min_count", "per_item"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least 1 is needed")
        for name in ("floor", "popular_share", "popular_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: between 0 and 1")


def find_pairs(events: Events, settings: PairsConfig) -> sp.csr_matrix:
    """Return the weight of each pair, [V + 1, V + 1] float64: row i holds the neighbours of item i.

    A meeting counts for both of its items, and no item is its own neighbour. Because of `per_item`, i may be
    a neighbour of j and j none of i.

    Notes
    -----
    The information of a pair is log(n_ij N / (n_i n_j)) with n_i = sum_j n_ij and N = sum_i n_i, all of them
    counts of meetings: H2Rec's code divides counts of items by the number of meetings, which makes nearly
    every pair a positive one.

    >>> walk = Events(np.array([0]), np.array([4]), np.array([1, 2, 1, 2]), None, 1.0, 3)
    >>> find_pairs(walk, PairsConfig(window=1)).toarray()[1:, 1:].tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    size = events.n_items + 1
    if settings.weigh == "none":
        return sp.csr_matrix((size, size))
    items = events.item_idx[events.rows()].astype(np.int64)
    user = np.repeat(np.arange(len(events.lengths)), events.lengths)
    count, faded = (sp.csr_matrix((size, size)) for _ in range(2))
    for distance in range(1, settings.window + 1):
        a, b = items[:-distance], items[distance:]
        meet = (user[:-distance] == user[distance:]) & (a != b)
        met = sp.csr_matrix((np.ones(meet.sum()), (a[meet], b[meet])), shape=(size, size))
        met = met + met.T
        count = count + met
        faded = faded + met * max(settings.floor, FADING ** (distance - 1))
    for table in (count, faded):
        table.sort_indices()  # both then hold the same pairs in the same order
    found = count.tocoo()
    of_item = np.asarray(count.sum(1)).ravel()  # [V + 1]
    if settings.weigh == "pmi":
        apart = of_item[found.row] * of_item[found.col] / max(1.0, of_item.sum())
        information = np.log(found.data / apart)
        most = information[found.data >= settings.min_count].max(initial=1e-12)
        weight = settings.floor + (1 - settings.floor) * information / most
        keep = (found.data >= settings.min_count) & (information > 0)
    else:
        weight = faded.tocoo().data / found.data
        keep = found.data >= settings.min_count
    popular = np.bincount(items, minlength=size) > settings.popular_share * len(items)
    left_out = np.random.default_rng(0).random(len(keep)) < settings.popular_dropout
    keep &= ~(popular[found.col] & left_out)
    row, column, weight, times = found.row[keep], found.col[keep], weight[keep], found.data[keep]
    order = np.lexsort((column, -times, -weight, row))  # of equal weight, the pairs that met more often
    row, column, weight = row[order], column[order], weight[order]
    first = np.searchsorted(row, row)
    best = np.arange(len(row)) - first < settings.per_item
    return sp.csr_matrix((weight[best], (row[best], column[best])), shape=(size, size))
