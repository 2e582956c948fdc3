"""Items whose codes are equal: counted by one more level, left as they are, or moved to free codes nearby."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ensuite.errors import EnsuiteError

Moves = Callable[[np.ndarray], np.ndarray]
"""``moves(which)`` gives, for the items at these positions, the cost of every code of the last level:
[len(which), K]."""


def place(codes: np.ndarray, policy: str, sizes: Sequence[int], moves: Moves, spare: int = 0) -> np.ndarray:
    """Return the codes [N, L or L + 1] int32 of all items under a policy; the earlier item keeps what both
    want.

    Parameters
    ----------
    codes
        What the tokeniser gave, [N, L].
    policy
        digit, shared or reassign, see `ensuite.codes.table.Policy`.
    sizes
        The tokeniser's level sizes.
    moves
        See `Moves`; asked for by reassign only.
    spare
        Digits beyond the largest group, for items that are appended later.
    """
    if policy == "digit":
        digit = count_within(codes)
        room = int(digit.max(initial=0)) + 1 + spare
        sizes = (*sizes, room)
    none = np.empty((0, len(sizes)), np.int32)
    return place_after(none, codes, policy, sizes, moves)


def place_after(
    old: np.ndarray, new: np.ndarray, policy: str, sizes: Sequence[int], moves: Moves
) -> np.ndarray:
    """Return codes of new items [N, L] that keep the policy beside the ``old`` ones [V, L].

    ``new`` is what the tokeniser gave; with the policy digit it has a level less.

    Raises
    ------
    EnsuiteError
        When the digit's level is full, or every code of the last level is taken.
    """
    new = np.asarray(new, np.int32)
    if policy == "shared":
        return new
    if policy == "digit":
        both = np.concatenate([old[:, :-1], new])
        digit = count_within(both)[len(old) :]
        if len(digit) and digit.max() >= sizes[-1]:
            most = int(digit.max())
            raise EnsuiteError(
                f"{most + 1} items would share the codes {tuple(new[digit.argmax()].tolist())}, and "
                f"the digit that tells them apart has {sizes[-1]} values; build anew with more --spare"
            )
        return np.concatenate([new, digit[:, None]], 1)
    return _reassign(old, new, sizes[-1], moves)


def count_within(codes: np.ndarray) -> np.ndarray:
    """Return how many earlier rows are equal to each row: [N] int32.

    >>> count_within(np.array([[1, 2], [0, 0], [1, 2], [1, 2]])).tolist()
    [0, 0, 1, 2]
    """
    order = np.lexsort(codes.T[::-1])
    ordered = codes[order]
    first = np.ones(len(order), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(1)
    starts = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    count = np.empty(len(order), np.int32)
    count[order] = np.arange(len(order)) - starts
    return count


def _reassign(old: np.ndarray, new: np.ndarray, size: int, moves: Moves) -> np.ndarray:
    """Move items whose codes are taken to free codes of the last level, at the least cost in all.

    LETTER repairs collisions by rounds of Sinkhorn on the last level; for each group of items that share all
    codes but the last, this is the assignment problem that those rounds approach, solved exactly.
    """
    from scipy.optimize import linear_sum_assignment

    both = np.concatenate([old, new])
    moved = np.flatnonzero(count_within(both)[len(old) :] > 0)
    if not len(moved):
        return new
    out = new.copy()
    shared = both * (np.arange(both.shape[1]) < both.shape[1] - 1)  # all codes but the last
    prefix = np.unique(shared, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(prefix, kind="stable")
    starts = np.searchsorted(prefix[order], np.arange(prefix.max() + 2))
    of_moved = prefix[len(old) + moved]
    for group in np.unique(of_moved):
        there = np.flatnonzero(of_moved == group)
        members = order[starts[group] : starts[group + 1]]
        free = np.setdiff1d(np.arange(size), both[members, -1])
        if len(free) < len(there):
            raise EnsuiteError(
                f"{len(members):,} items share the codes {tuple(new[moved[there[0]], :-1].tolist())}, and "
                f"the last level has {size:,}; build the table with more codes, or with --duplicates digit"
            )
        row, column = linear_sum_assignment(moves(moved[there])[:, free])
        out[moved[there[row]], -1] = free[column]
    return out
