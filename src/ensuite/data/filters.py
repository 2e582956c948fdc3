"""Filters that look at more than one event, each with its count: all work on sorted codes, none on users one
by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import polars as pl

from ensuite.data.options import PrepareConfig
from ensuite.data.order import Ordered, tied
from ensuite.data.tables import Step
from ensuite.data.times import parse_bound
from ensuite.errors import EnsuiteError


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


def apply_filters(
    events: Ordered, columns: Mapping[str, pl.Series], unit: str | None, config: PrepareConfig, steps: Steps
) -> tuple[Ordered, dict[str, int]]:
    """Apply the filters on time and neighbours, in the order that the documentation gives.

    Returns the events left, and how many were duplicates and repeats, dropped or not.
    """
    for flag, value in (("since", config.since), ("until", config.until)):
        if value is None:
            continue
        if events.time is None or unit is None:
            raise EnsuiteError(
                f"--{flag} needs times, and this log holds an order only; name the column with --time"
            )
        bound = parse_bound(value, unit, flag)
        keep = events.time >= bound if flag == "since" else events.time < bound
        events = steps.apply(
            events,
            keep,
            f"{flag} {value}",
            f"events {'before' if flag == 'since' else 'at or after'} {value}",
        )

    def extra(rows: np.ndarray) -> pl.DataFrame:
        return pl.DataFrame({f"x.{name}": column.gather(rows) for name, column in columns.items()})

    same = duplicates(events, extra if columns else None)
    counts = {"duplicates": int(np.count_nonzero(same))}
    if config.drop_duplicates:
        events = steps.apply(
            events, ~same, "duplicates", "events equal to an earlier one in user, item, time and kept columns"
        )
    again = repeats(events.user, events.item)
    counts["repeats"] = int(np.count_nonzero(again))
    if config.drop_repeats:
        events = steps.apply(
            events, ~again, "consecutive repeats", "events with the same item as the user's event before"
        )
    if config.min_user > 1 or config.min_item > 1:
        keep, rounds = frequent(
            events.user, events.item, config.min_user, config.min_item, one_pass=config.one_pass
        )
        how = "one pass" if config.one_pass else f"fixed point after {rounds} rounds"
        wanted = f"users >= {config.min_user}, items >= {config.min_item}"
        events = steps.apply(events, keep, wanted, f"events of users or items with fewer ({how})")
    if config.last:
        keep = last_events(events.user, config.last)
        events = steps.apply(
            events, keep, f"last {config.last}", f"all but the last {config.last} events of each user"
        )
    return events, counts


def nothing_left(name: str, steps: Steps) -> EnsuiteError:
    said = "; ".join(f"{s.name}: {s.before:,} to {s.after:,} events" for s in steps.done)
    return EnsuiteError(f"{name}: the filters leave no event ({said}); loosen them")
