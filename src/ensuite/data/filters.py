"""Filters that look at more than one event, each with its count: all work on sorted codes, none on users one
by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from ensuite.data.order import Ordered, tied
from ensuite.data.tables import Step


def duplicates(events: Ordered, extra: Callable[[np.ndarray], pl.DataFrame] | None = None) -> np.ndarray:
    """Mark events equal to an earlier one in user, item, time and the kept columns: [N] bool.

    Equal events share user and time, so only tied ones are compared. Without times nothing is a duplicate: an
    order-only log says of each event that it happened after the one before.
    """
    mask = np.zeros(len(events), bool)
    rows = np.flatnonzero(tied(events.user, events.time))
    if len(rows):
        assert events.time is not None
        frame = pl.DataFrame(
            {"user": events.user[rows], "item": events.item[rows], "time": events.time[rows]}
        )
        if extra is not None and events.row is not None:
            frame = pl.concat([frame, extra(events.row[rows])], how="horizontal")
        mask[rows] = ~frame.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
    return mask


def repeats(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Mark events with the same user and item as the event before: [N] bool."""
    mask = np.zeros(len(user), bool)
    mask[1:] = (user[1:] == user[:-1]) & (item[1:] == item[:-1])
    return mask


def frequent(
    user: np.ndarray, item: np.ndarray, min_user: int, min_item: int, *, one_pass: bool = False
) -> tuple[np.ndarray, int]:
    """Mark events whose user and item have enough events: [N] bool, and the number of rounds.

    Repeated until nothing more is dropped; with ``one_pass`` items are counted once, then users once.

    >>> frequent(np.array([0, 0, 1]), np.array([0, 1, 0]), 2, 1)[0].tolist()
    [True, True, False]
    """
    alive = np.arange(len(user))
    rounds = 0
    while True:
        rounds += 1
        before = len(alive)
        if min_item > 1:
            alive = alive[np.bincount(item[alive])[item[alive]] >= min_item] if len(alive) else alive
        if min_user > 1 and len(alive):
            alive = alive[np.bincount(user[alive])[user[alive]] >= min_user]
        if one_pass or len(alive) == before or not len(alive):
            break
    mask = np.zeros(len(user), bool)
    mask[alive] = True
    return mask, rounds


def last_events(user: np.ndarray, n: int) -> np.ndarray:
    """Mark the last ``n`` events of each user, of sorted ones: [N] bool."""
    if not len(user):
        return np.zeros(0, bool)
    length = np.bincount(user)
    end = np.cumsum(length)
    return np.arange(len(user)) >= end[user] - n


class Steps:
    """The filters applied so far, to be told in the report."""

    def __init__(self, steps: tuple[Step, ...] = ()):
        self.done = list(steps)

    def apply(self, events: Ordered, keep: np.ndarray, name: str, why: str) -> Ordered:
        """Keep the events marked, and note the counts."""
        kept = int(np.count_nonzero(keep))
        self.done.append(Step(name, len(events), kept, why))
        return events if kept == len(events) else events.take(keep)
