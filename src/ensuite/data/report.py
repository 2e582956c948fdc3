"""What happened in `prepare`, in numbers: computed for the card, and told as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from ensuite.data.dataset import Split
from ensuite.data.tables import Step
from ensuite.data.times import say_time

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def build_report(
    steps: Sequence[Step],
    n_read: int,
    counts: dict[str, int],
    offsets: np.ndarray,
    item_idx: np.ndarray,
    time: np.ndarray | None,
    split: Split,
    card: dict[str, Any],
    notes: Sequence[str],
    session: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the report: plain numbers and text, as kept in card.json under `report`."""
    n_users, n_items, n_events = len(offsets) - 1, int(item_idx.max()), len(item_idx)
    lengths = np.diff(offsets)
    per_item = np.bincount(item_idx, minlength=n_items + 1)[1:]
    report: dict[str, Any] = {
        "events_read": n_read,
        "filters": [step.as_dict() for step in steps],
        "events": n_events,
        "users": n_users,
        "items": n_items,
        "density": n_events / (n_users * n_items),
        "length_percentiles": _percentiles(lengths),
        "mean_length": float(n_events / n_users),
        "item_count_percentiles": _percentiles(per_item),
        "duplicates": counts["duplicates"],
        "consecutive_repeats": counts["repeats"],
        "tie_share": card["tie_share"],
        "phases": _phases(offsets, item_idx, split, card["split"], n_items),
    }
    if session is not None:
        report["sessions"] = _sessions(offsets, session, split)
    unit = card["time_unit"]
    if time is not None and unit is not None:
        report["first"], report["last"] = say_time(int(time.min()), unit), say_time(int(time.max()), unit)
    report["notes"] = [*notes, *_warnings(report, card)]
    return report


def _percentiles(values: np.ndarray) -> dict[str, int]:
    found = np.percentile(values, PERCENTILES, method="lower")
    return {str(p): int(v) for p, v in zip(PERCENTILES, found)}


def _sessions(offsets: np.ndarray, session: np.ndarray, split: Split) -> dict[str, Any]:
    """Sessions: how many, of what size, in each phase; ``session`` [E] counts those of each user from 0."""
    lengths, starts = np.diff(offsets), np.asarray(offsets[:-1])
    count = session[np.asarray(offsets[1:]) - 1] + 1  # [U]
    first = np.repeat(np.cumsum(count) - count, lengths)
    before = [
        np.where(end > 0, session[starts + np.maximum(end, 1) - 1] + 1, 0)
        for end in (split.train_end, split.valid_end, split.test_end)
    ]
    done = [int(part.sum()) for part in before]
    return {
        "sessions": int(count.sum()),
        "per_user_percentiles": _percentiles(count),
        "items_percentiles": _percentiles(np.bincount(first + session)),
        "phases": {"train": done[0], "valid": done[1] - done[0], "test": done[2] - done[1]},
    }


def _phases(
    offsets: np.ndarray, item_idx: np.ndarray, split: Split, card: dict[str, Any], n_items: int
) -> dict[str, dict[str, int]]:
    """Events, users, and what of them training has not seen: per phase."""
    known = np.zeros(n_items + 1, bool)
    starts = offsets[:-1]
    zero = np.zeros(len(starts), np.int64)
    phases = {}
    for name, begin, end in (
        ("train", zero, split.train_end),
        ("valid", split.train_end, split.valid_end),
        ("test", split.valid_end, split.test_end),
    ):
        mark = np.zeros(len(item_idx) + 1, np.int8)  # +1 where a phase begins, -1 where it ends
        some = end > begin
        np.add.at(mark, (starts + begin)[some], 1)
        np.add.at(mark, (starts + end)[some], -1)
        inside = np.cumsum(mark[:-1], dtype=np.int8).astype(bool)
        events = item_idx[inside]
        if name == "train":
            known[events] = True
            phases[name] = {"events": len(events), "users": int(some.sum()), "items": int(known.sum())}
            continue
        there = np.zeros(n_items + 1, bool)
        there[events] = True
        phases[name] = {
            "events": len(events),
            "users": int(some.sum()),
            "items": int(there.sum()),
            "cold_users": int((some & (split.train_end == 0)).sum()),
            "users_without_history": int((some & (begin == 0)).sum())
            if card["kind"] != "unseen-users"
            else 0,
            "cold_items": int((there & ~known).sum()),
            "events_with_cold_items": int((~known[events]).sum()),
        }
    return phases


def _warnings(report: dict[str, Any], card: dict[str, Any]) -> list[str]:
    said = []
    if report["users"] == 1:
        said.append("one user only: a model can be fitted, its scores say nothing")
    if card["split"].get("users_too_short"):
        said.append(
            f"{card['split']['users_too_short']:,} users with fewer than {_needed(card['split'])} are "
            "trained on and not evaluated"
        )
    if (report["tie_share"] or 0) > 0.2:
        said.append(
            f"{report['tie_share']:.0%} of events share their time with a neighbour: their order, and "
            "with it leave-one-out scores, rests on "
            f"the tie rule ({card['order']})"
        )
    return said


def _needed(split: dict[str, Any]) -> str:
    """Say what a user needs to be evaluated."""
    return f"{sum(split['held_sessions']) + 1} sessions" if split["kind"] == "sessions" else "3 events"


def tables(card: dict[str, Any]) -> list[Table]:
    """Return the report of a dataset's card as tables to print."""
    report = card["report"]
    return [
        t
        for t in (_filter_table(report), _size_table(report, card), _phase_table(report, card))
        if t is not None
    ]


def _filter_table(report: dict[str, Any]) -> Table | None:
    if not report["filters"]:
        return None
    table = Table(
        "filter",
        "events before",
        "after",
        "dropped",
        "what was dropped",
        title="Filters",
        title_justify="left",
    )
    for step in report["filters"]:
        dropped = step["before"] - step["after"]
        table.add_row(
            step["filter"], f"{step['before']:,}", f"{step['after']:,}", f"{dropped:,}", step["why"]
        )
    return table


def _size_table(report: dict[str, Any], card: dict[str, Any]) -> Table:
    table = Table(title="Dataset", title_justify="left", show_header=False)
    lengths, counts = report["length_percentiles"], report["item_count_percentiles"]
    table.add_row("events", f"{report['events']:,} of {report['events_read']:,} read")
    table.add_row(
        "users, items", f"{report['users']:,}, {report['items']:,} (density {report['density']:.3%})"
    )
    table.add_row("events a user", f"mean {report['mean_length']:.1f}; " + _say_percentiles(lengths))
    table.add_row("events an item", _say_percentiles(counts))
    if "sessions" in report:
        said = report["sessions"]
        phases = ", ".join(f"{name} {n:,}" for name, n in said["phases"].items())
        table.add_row("sessions", f"{said['sessions']:,} ({phases})")
        table.add_row("sessions a user", _say_percentiles(said["per_user_percentiles"]))
        table.add_row("items a session", _say_percentiles(said["items_percentiles"]))
    if "first" in report:
        table.add_row("times", f"{report['first']} to {report['last']} UTC, stored in {card['time_unit']}")
        table.add_row("tied in time", f"{report['tie_share']:.1%} of events")
    else:
        table.add_row("times", "none: an order only")
    table.add_row("order", card["order"])
    table.add_row(
        "duplicates",
        f"{report['duplicates']:,} events equal to an earlier one; {report['consecutive_repeats']:,} "
        "repeat the item before",
    )
    return table


def _say_percentiles(values: dict[str, int]) -> str:
    return ", ".join(
        f"{v:,} ({'min' if p == '0' else 'max' if p == '100' else p + ' %'})" for p, v in values.items()
    )


def _phase_table(report: dict[str, Any], card: dict[str, Any]) -> Table:
    split = card["split"]
    cuts = f", cuts {' and '.join(split['cuts_utc'])}" if "cuts_utc" in split else ""
    table = Table(
        "phase",
        "events",
        "users",
        "items",
        "cold users",
        "cold items",
        "events with them",
        title=f"Split: {split['kind']}{cuts}, targets: {split['targets']}",
        title_justify="left",
    )
    for name, phase in report["phases"].items():
        rest = [
            f"{phase[k]:,}" if k in phase else ""
            for k in ("cold_users", "cold_items", "events_with_cold_items")
        ]
        table.add_row(name, f"{phase['events']:,}", f"{phase['users']:,}", f"{phase['items']:,}", *rest)
    return table
