"""The order of events, and how much of it the log does not tell: events of one user at the same time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Ordered:
    """Events sorted by user, then time (then as the tie rule says): [N] each."""

    user: np.ndarray  # int32 codes, ascending
    item: np.ndarray  # int32 codes
    time: np.ndarray | None  # int64 ticks
    row: np.ndarray | None  # row of the event in the collected log; None when nobody needs it
    session: np.ndarray | None = None  # int64, ascending over all users; None where none were cut

    def take(self, keep: np.ndarray) -> Ordered:
        """Return the events where ``keep`` is true."""
        return replace(
            self,
            user=self.user[keep],
            item=self.item[keep],
            time=None if self.time is None else self.time[keep],
            row=None if self.row is None else self.row[keep],
            session=None if self.session is None else self.session[keep],
        )

    def __len__(self) -> int:
        return len(self.user)


def sort_order(
    user: np.ndarray, time: np.ndarray | None, order: np.ndarray | None, shuffle_seed: int | None = None
) -> np.ndarray | None:
    """Return the stable order by (user, time, order column, row): [N] int64, or None when it is already so.

    With ``shuffle_seed`` ties are in random order instead of row order.
    """
    n = len(user)
    key = _one_key(user, time) if order is None else None
    if key is not None and shuffle_seed is None and n and bool(np.all(key[1:] >= key[:-1])):
        return None
    start = None
    if shuffle_seed is not None:
        start = np.random.default_rng(shuffle_seed).permutation(n)
    if key is not None:
        columns = {"key": key if start is None else key[start]}
    else:
        parts = {"user": user, "time": time, "order": order}
        columns = {k: v if start is None else v[start] for k, v in parts.items() if v is not None}
    by = (
        pl.DataFrame(columns)
        .select(pl.arg_sort_by(list(columns), maintain_order=True))
        .to_series()
        .to_numpy()
    )
    return by if start is None else start[by]


def _one_key(user: np.ndarray, time: np.ndarray | None) -> np.ndarray | None:
    """User and time in one integer, where 63 bits hold both: one column sorts several times faster than
    two."""
    if time is None or not len(time):
        return user.astype(np.int64)
    low = int(time.min())
    bits = (int(time.max()) - low).bit_length()
    if bits + int(user.max()).bit_length() > 62:
        return None
    key = user.astype(np.int64)
    key <<= bits
    key += time
    key -= low
    return key


def tied(user: np.ndarray, time: np.ndarray | None) -> np.ndarray:
    """Mark sorted events that share user and time with a neighbour: [N] bool (all false without times)."""
    mask = np.zeros(len(user), bool)
    if time is not None and len(user) > 1:
        same = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
        mask[1:] = same
        mask[:-1] |= same
    return mask
