"""The audit that stands between a split and every score: what was promised about the past is checked, event
by event."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensuite.data.dataset import Dataset, Split
from ensuite.data.times import say_time
from ensuite.errors import EnsuiteError

EXAMPLES = 3


def audit(dataset: Dataset) -> None:
    """Check that nothing of a dataset's split leaks; called by `prepare`, and before every training.

    Raises
    ------
    EnsuiteError
        Naming up to three users with their times.
    """
    audit_arrays(
        dataset.offsets,
        dataset.time,
        dataset.item_idx,
        dataset.split,
        dataset.card,
        dataset.n_items,
        str(dataset.path),
        dataset.column("session") if "session" in dataset.card["columns"] else None,
    )


def audit_arrays(
    offsets: np.ndarray,
    time: np.ndarray | None,
    item_idx: np.ndarray,
    split: Split,
    card: dict[str, Any],
    n_items: int,
    name: str,
    session: np.ndarray | None = None,
) -> None:
    """`audit` of arrays in memory: offsets [U + 1], time, item_idx and session [E], split [U] each."""
    lengths = np.diff(offsets)
    n_events = len(item_idx)
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != n_events or (lengths < 0).any():
        raise EnsuiteError(
            f"{name}: leakage audit: offsets do not cover the {n_events:,} events; prepare the dataset again"
        )
    if n_events and (item_idx.min() < 1 or item_idx.max() > n_items):
        raise EnsuiteError(
            f"{name}: leakage audit: item_idx outside 1..{n_items:,}; prepare the dataset again"
        )
    _check_ends(lengths, split, name)
    if time is not None:
        _check_order(offsets, time, card.get("time_unit") or "s", name)
    kind = card["split"]["kind"]
    if kind == "leave-one-out":
        _refuse(
            (split.valid_end - split.train_end > 1)
            | (split.test_end - split.valid_end > 1)
            | (split.test_end != lengths),
            name,
            "more than one event held out of a phase, or events after the test",
            split,
        )
    elif kind == "unseen-users":
        _refuse(
            (split.test_end > split.train_end) & (split.train_end > 0),
            name,
            "held-out users with training events",
            split,
        )
        mixed = (split.valid_end > split.train_end) & (split.test_end > split.valid_end)
        _refuse(mixed, name, "users in both validation and test", split)
    elif kind == "global-time":
        if time is None:
            raise EnsuiteError(
                f"{name}: leakage audit: a global-time split without times; prepare the dataset again"
            )
        _check_cuts(offsets, time, split, card, name)
    elif kind == "sessions":
        if session is None:
            raise EnsuiteError(
                f"{name}: leakage audit: a sessions split without a session column; prepare the dataset again"
            )
        _check_sessions(offsets, session, split, name)
    else:
        raise EnsuiteError(f"{name}: leakage audit: unknown split '{kind}'; prepare the dataset again")


def _check_ends(lengths: np.ndarray, split: Split, name: str) -> None:
    if not len(split.train_end) == len(split.valid_end) == len(split.test_end) == len(lengths):
        raise EnsuiteError(
            f"{name}: leakage audit: the split counts other users than the log; prepare the dataset again"
        )
    wrong = (
        (split.train_end < 0)
        | (split.valid_end < split.train_end)
        | (split.test_end < split.valid_end)
        | (lengths < split.test_end)
    )
    _refuse(wrong, name, "0 <= train_end <= valid_end <= test_end <= length does not hold", split)


def _check_order(offsets: np.ndarray, time: np.ndarray, unit: str, name: str) -> None:
    back = time[1:] < time[:-1]
    starts = offsets[1:-1]
    back[starts[(starts > 0) & (starts < len(time))] - 1] = False
    if back.any():
        row = int(back.argmax())
        user = int(np.searchsorted(offsets, row, side="right")) - 1
        raise EnsuiteError(
            f"{name}: leakage audit: {np.count_nonzero(back):,} events come before their predecessor; "
            f"user row {user}: "
            f"{say_time(int(time[row]), unit)}, then {say_time(int(time[row + 1]), unit)}; prepare the "
            "dataset again"
        )


def _check_cuts(offsets: np.ndarray, time: np.ndarray, split: Split, card: dict[str, Any], name: str) -> None:
    """Times ascend within a user, so the last event before each end and the first after it tell for all."""
    first, second = card["split"]["cuts"]
    unit = card["time_unit"]
    starts = offsets[:-1]
    for ends, cut, what in (
        (split.train_end, first, "training"),
        (split.valid_end, second, "training or validation"),
    ):
        some = ends > 0
        late = np.zeros(len(starts), bool)
        late[some] = time[(starts + ends)[some] - 1] >= cut
        _refuse(late, name, f"{what} events at or after the cut {say_time(cut, unit)}", split)
        rest = ends < np.diff(offsets)
        early = np.zeros(len(starts), bool)
        early[rest] = time[(starts + ends)[rest]] < cut
        _refuse(early, name, f"held-out events before the cut {say_time(cut, unit)}", split)
    _refuse(split.test_end != np.diff(offsets), name, "events after the end of test", split)


def _check_sessions(offsets: np.ndarray, session: np.ndarray, split: Split, name: str) -> None:
    """Sessions ascend within a user and are held out whole: none goes on past an end, so none is both trained
    on and asked for."""
    lengths, starts = np.diff(offsets), np.asarray(offsets[:-1])
    user = np.repeat(np.arange(len(lengths)), lengths)
    back = np.zeros(len(lengths), bool)
    back[user[1:][(session[1:] < session[:-1]) & (user[1:] == user[:-1])]] = True
    _refuse(back, name, "a session's events are not in one piece", split)
    for end in (split.train_end, split.valid_end):
        inside = (end > 0) & (end < lengths)
        cut = np.zeros(len(lengths), bool)
        rows = (starts + end)[inside]
        cut[inside] = session[rows] == session[rows - 1]
        _refuse(cut, name, "a session is partly held out", split)
    _refuse(split.test_end != lengths, name, "events after the end of test", split)


def _refuse(wrong: np.ndarray, name: str, what: str, split: Split) -> None:
    if wrong.any():
        some = np.flatnonzero(wrong)[:EXAMPLES]
        cases = "; ".join(
            f"user row {u}: train {split.train_end[u]}, valid {split.valid_end[u]}, test {split.test_end[u]}"
            for u in some
        )
        raise EnsuiteError(
            f"{name}: leakage audit: {what} ({np.count_nonzero(wrong):,} users): {cases}; prepare the "
            "dataset again"
        )
