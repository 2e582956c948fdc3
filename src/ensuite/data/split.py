"""Where training, validation and test end in each user's row: three integer arrays, never three copies."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensuite.data.dataset import Split
from ensuite.data.options import PrepareConfig
from ensuite.data.sessions import begins
from ensuite.data.times import parse_bound, say_time
from ensuite.errors import EnsuiteError

LEAVE_ONE_OUT_LENGTH = 3


def build_split(
    offsets: np.ndarray,
    time: np.ndarray | None,
    time_unit: str | None,
    config: PrepareConfig,
    session: np.ndarray | None = None,
) -> tuple[Split, dict[str, Any]]:
    """Return the split that ``config`` asks for, and its entry in the card.

    Parameters
    ----------
    offsets
        First row of each user: [U + 1] int64.
    time
        Event times, ascending within a user: [E] int64, or None.
    session
        The sessions' numbers within each user, ascending: [E]; needed for the split by sessions.
    """
    lengths = np.diff(offsets)
    if config.split == "leave-one-out":
        return leave_one_out(lengths)
    if config.split == "unseen-users":
        return unseen_users(lengths, config.held_out, config.seed)
    if config.split == "sessions":
        assert session is not None
        return last_sessions(offsets, session, config.held_sessions)
    if time is None or time_unit is None:
        raise EnsuiteError(
            "--split global-time needs times, and this log holds an order only; name the column with "
            "--time, or choose another split"
        )
    return global_time(offsets, time, time_unit, config.cuts, config.targets)


def leave_one_out(lengths: np.ndarray) -> tuple[Split, dict[str, Any]]:
    """Last event of each user to test, the one before to validation; users with fewer than 3 are trained on
    whole."""
    long = lengths >= LEAVE_ONE_OUT_LENGTH
    if not long.any():
        raise EnsuiteError(
            f"--split leave-one-out needs users with at least {LEAVE_ONE_OUT_LENGTH} events, the longest "
            f"of {len(lengths):,} has "
            f"{lengths.max(initial=0)}; take a longer log, fewer filters, or --split global-time"
        )
    held = long.astype(np.int64)
    split = Split(lengths - 2 * held, lengths - held, lengths.astype(np.int64))
    return split, {"kind": "leave-one-out", "targets": "next", "users_too_short": int((~long).sum())}


def global_time(
    offsets: np.ndarray, time: np.ndarray, unit: str, cuts: tuple[str, str] | None, targets: str
) -> tuple[Split, dict[str, Any]]:
    """Before the first cut: training; from it, before the second: validation; from the second on: test."""
    first, second = find_cuts(time, unit, cuts)
    ends = []
    for cut in (first, second):
        before = np.concatenate([[0], np.cumsum(time < cut, dtype=np.int64)])[offsets]
        ends.append(np.diff(before))
    split = Split(ends[0], ends[1], np.diff(offsets).astype(np.int64))
    train, valid = int(ends[0].sum()), int((ends[1] - ends[0]).sum())
    counts = {"training": train, "validation": valid, "test": len(time) - train - valid}
    empty = [name for name, count in counts.items() if count == 0]
    if empty:
        raise EnsuiteError(
            f"--split global-time: no event in {' and '.join(empty)}: the cuts are "
            f"{say_time(first, unit)} and {say_time(second, unit)}, "
            f"the log goes from {say_time(int(time.min()), unit)} to {say_time(int(time.max()), unit)}; "
            "give other --cuts"
        )
    said = {
        "cuts": [first, second],
        "cuts_utc": [say_time(first, unit), say_time(second, unit)],
        "asked": list(cuts or ("0.8", "0.9")),
    }
    return split, {"kind": "global-time", "targets": targets, **said}


def last_sessions(
    offsets: np.ndarray, session: np.ndarray, held: tuple[int, int]
) -> tuple[Split, dict[str, Any]]:
    """Last sessions of each user to test, those before to validation; users without one more are trained on
    whole."""
    lengths = np.diff(offsets).astype(np.int64)
    user = np.repeat(np.arange(len(lengths)), lengths)
    first = np.flatnonzero(begins(user, session))  # rows where sessions begin
    count = np.bincount(user[first], minlength=len(lengths))
    valid, test = held
    long = count > valid + test
    if not long.any():
        raise EnsuiteError(
            f"--split sessions holds out {valid} + {test} sessions and needs users with at least one more, "
            f"the most of {len(lengths):,} users has {count.max(initial=0)}; take a longer log, fewer "
            "filters, a shorter --session-gap, or smaller --held-sessions"
        )
    ends = []
    after = np.cumsum(count)[long]  # past each user's last session, among all sessions
    for back in (valid + test, test):
        end = lengths.copy()
        end[long] = first[after - back] - np.asarray(offsets[:-1])[long]
        ends.append(end)
    said = {"held_sessions": [valid, test], "users_too_short": int((~long).sum())}
    return Split(ends[0], ends[1], lengths), {"kind": "sessions", "targets": "session", **said}


def find_cuts(time: np.ndarray, unit: str, cuts: tuple[str, str] | None) -> tuple[int, int]:
    """Return the two cuts in ticks: shares of events become the time of the event at that share."""
    found = []
    for text in cuts or ("0.8", "0.9"):
        try:
            share = float(text) if "." in text else None
        except ValueError:
            share = None
        if share is None:
            found.append(parse_bound(text, unit, "cuts"))
        elif 0 < share < 1:
            at = int(share * len(time))
            found.append(int(np.partition(time, at)[at]))
        else:
            raise EnsuiteError(f"--cuts {text}: a share of events is between 0 and 1")
    if found[0] >= found[1]:
        raise EnsuiteError(
            f"--cuts: the first ({say_time(found[0], unit)}) is not before the second "
            f"({say_time(found[1], unit)}); give other --cuts"
        )
    return found[0], found[1]


def unseen_users(
    lengths: np.ndarray, held_out: tuple[float, float], seed: int
) -> tuple[Split, dict[str, Any]]:
    """Hold whole users out; of their events the last is asked for. Only users with 2 events or more are
    drawn."""
    n = len(lengths)
    eligible = np.flatnonzero(lengths >= 2)
    n_valid, n_test = (int(np.rint(share * n)) for share in held_out)
    wanted = [1 if share > 0 and count == 0 else count for share, count in zip(held_out, (n_valid, n_test))]
    if sum(wanted) >= n or sum(wanted) > len(eligible):
        raise EnsuiteError(
            f"--split unseen-users: {sum(wanted)} of {n:,} users to be held out, {len(eligible):,} have "
            "the 2 events needed, and at least "
            "one must be left to train on; take a longer log or smaller --held-out"
        )
    drawn = np.random.default_rng(seed).permutation(eligible)
    valid, test = drawn[: wanted[0]], drawn[wanted[0] : sum(wanted)]
    train_end, valid_end, test_end = (lengths.astype(np.int64) for _ in range(3))
    train_end[valid] = 0
    train_end[test] = valid_end[test] = 0
    held = {"seed": seed, "held_out": list(held_out), "users_valid": len(valid), "users_test": len(test)}
    return Split(train_end, valid_end, test_end), {"kind": "unseen-users", "targets": "last", **held}
