"""Splits never leak, and the audit sees it when one does."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ensuite.data.dataset import Split
from ensuite.data.leakage import audit, audit_arrays
from ensuite.data.prepare import PrepareConfig, prepare
from ensuite.data.split import global_time, leave_one_out, unseen_users
from ensuite.errors import EnsuiteError

QUICK = settings(max_examples=100, deadline=None)
LENGTHS = st.lists(st.integers(1, 6), min_size=3, max_size=12)
CARDS: dict[str, dict[str, Any]] = {
    "leave-one-out": {"split": {"kind": "leave-one-out", "targets": "next"}, "time_unit": "s"},
    "global-time": {"split": {"kind": "global-time", "targets": "next", "cuts": [5, 8]}, "time_unit": "s"},
    "unseen-users": {"split": {"kind": "unseen-users", "targets": "last"}, "time_unit": "s"},
}


def ragged(lengths: list[int], data: st.DataObject, ticks: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Offsets, and times with many ties, ascending within each user."""
    time = [np.sort(data.draw(st.lists(st.integers(0, ticks), min_size=n, max_size=n))) for n in lengths]
    return np.concatenate([[0], np.cumsum(lengths)]), np.concatenate(time).astype(np.int64)


@QUICK
@given(LENGTHS, st.data())
def test_global_time_never_trains_on_the_future(lengths: list[int], data: st.DataObject) -> None:
    offsets, time = ragged(lengths, data)
    first, second = sorted(data.draw(st.lists(st.integers(0, 13), min_size=2, max_size=2, unique=True)))
    phase = np.searchsorted([first, second], time, side="right")
    if len(np.unique(phase)) < 3:
        with pytest.raises(EnsuiteError, match="no event in"):
            global_time(offsets, time, "s", (str(first), str(second)), "next")
        return
    split, said = global_time(offsets, time, "s", (str(first), str(second)), "next")
    for u, (start, end) in enumerate(pairwise(offsets)):
        own = time[start:end]
        a, b, c = split.train_end[u], split.valid_end[u], split.test_end[u]
        assert (own[:a] < first).all()
        assert ((own[a:b] >= first) & (own[a:b] < second)).all()
        assert (own[b:c] >= second).all()
        assert c == len(own)
    card = {"split": said, "time_unit": "s"}
    audit_arrays(offsets, time, np.ones(len(time), np.int32), split, card, 1, "data")


@QUICK
@given(LENGTHS, st.data())
def test_quantile_cuts_leave_ties_to_the_later_phase(lengths: list[int], data: st.DataObject) -> None:
    offsets, time = ragged(lengths, data)
    try:
        split, said = global_time(offsets, time, "s", None, "all")
    except EnsuiteError:
        assume(False)
    trained = np.concatenate([time[s : s + n] for s, n in zip(offsets, split.train_end)])
    assert trained.max() < said["cuts"][0]
    assert len(trained) <= 0.8 * len(time)


@QUICK
@given(LENGTHS)
def test_leave_one_out(lengths: list[int]) -> None:
    assume(max(lengths) >= 3)
    split, said = leave_one_out(np.array(lengths))
    for u, n in enumerate(lengths):
        ends = (split.train_end[u], split.valid_end[u], split.test_end[u])
        assert ends == ((n - 2, n - 1, n) if n >= 3 else (n, n, n))
    assert said["users_too_short"] == sum(n < 3 for n in lengths)


@QUICK
@given(LENGTHS, st.integers(0, 5))
def test_unseen_users_are_in_one_phase_only(lengths: list[int], seed: int) -> None:
    if sum(n >= 2 for n in lengths) < 2 * max(1, round(0.2 * len(lengths))):
        with pytest.raises(EnsuiteError, match="one must be left"):
            unseen_users(np.array(lengths), (0.2, 0.2), seed)
        return
    split, said = unseen_users(np.array(lengths), (0.2, 0.2), seed)
    held = split.train_end == 0
    assert held.sum() == said["users_valid"] + said["users_test"]
    in_valid, in_test = split.valid_end > split.train_end, split.test_end > split.valid_end
    assert not (in_valid & in_test).any()
    assert ((in_valid | in_test) == held).all()
    again, _ = unseen_users(np.array(lengths), (0.2, 0.2), seed)
    assert (again.train_end == split.train_end).all()


@pytest.mark.parametrize("kind", ["leave-one-out", "global-time", "unseen-users"])
def test_targets_of_cases_are_never_in_their_own_history(kind: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    log = {
        "user": rng.integers(0, 30, 600),
        "item": rng.integers(0, 40, 600),
        "time": 1_600_000_000 + rng.integers(0, 50, 600),
    }
    dataset = prepare(pl.DataFrame(log), out=tmp_path / "d", config=PrepareConfig(split=kind))
    assert dataset.time is not None
    for phase in ("valid", "test"):
        cases = dataset.cases(phase)  # type: ignore[arg-type]
        assert len(cases) > 0
        assert (cases.history_end > cases.history_start).all()
        assert (cases.target_end == cases.history_end + 1).all()
        assert (dataset.time[cases.history_end] >= dataset.time[cases.history_end - 1]).all()
    train = dataset.events("train")
    rows = set(train.rows().tolist())
    for phase in ("valid", "test"):
        assert rows.isdisjoint(dataset.cases(phase).history_end.tolist())  # type: ignore[arg-type]


def test_all_targets_until_the_next_cut(tmp_path: Path) -> None:
    log = pl.DataFrame({"user": [1] * 10, "item": range(10), "time": range(100, 110)})
    config = PrepareConfig(split="global-time", cuts=("104", "107"), targets="all")
    dataset = prepare(log, out=tmp_path / "d", config=config)
    assert dataset.item_idx[
        dataset.cases("valid").history_end[0] : dataset.cases("valid").target_end[0]
    ].tolist() == [5, 6, 7]
    assert dataset.item_idx[
        dataset.cases("test").history_end[0] : dataset.cases("test").target_end[0]
    ].tolist() == [8, 9, 10]


def test_cold_users_and_items_are_counted(tmp_path: Path) -> None:
    log = pl.DataFrame({"user": [1, 1, 2, 2, 3, 1], "item": [1, 2, 2, 3, 3, 9], "time": [0, 1, 6, 7, 8, 9]})
    config = PrepareConfig(split="global-time", cuts=("5", "8"))
    phases = prepare(log, out=tmp_path / "d", config=config).card["report"]["phases"]
    assert phases["train"] == {"events": 2, "users": 1, "items": 2}
    want = {"events": 2, "users": 1, "items": 2, "cold_users": 1, "users_without_history": 1, "cold_items": 1}
    assert phases["valid"] == want | {"events_with_cold_items": 1}
    want = {"events": 2, "users": 2, "items": 2, "cold_users": 1, "users_without_history": 1, "cold_items": 2}
    assert phases["test"] == want | {"events_with_cold_items": 2}


OFFSETS, TIME = np.array([0, 4, 8]), np.array([1, 2, 5, 8, 3, 4, 6, 9])
GOOD = {
    "leave-one-out": Split(np.array([2, 2]), np.array([3, 3]), np.array([4, 4])),
    "global-time": Split(np.array([2, 2]), np.array([3, 3]), np.array([4, 4])),
    "unseen-users": Split(np.array([4, 0]), np.array([4, 4]), np.array([4, 4])),
}


@pytest.mark.parametrize("kind", GOOD)
def test_audit_passes_what_is_right(kind: str) -> None:
    audit_arrays(OFFSETS, TIME, np.ones(8, np.int32), GOOD[kind], CARDS[kind], 1, "data")


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (
            "leave-one-out",
            {"train_end": [3, 2], "valid_end": [2, 3]},
            "0 <= train_end <= valid_end <= test_end <= length",
        ),
        ("leave-one-out", {"test_end": [4, 5]}, "0 <= train_end <= valid_end"),
        ("leave-one-out", {"train_end": [-1, 2]}, "0 <= train_end <= valid_end"),
        ("leave-one-out", {"train_end": [1, 2]}, "more than one event held out"),
        ("leave-one-out", {"train_end": [2]}, "counts other users"),
        ("global-time", {"train_end": [3, 2]}, "training events at or after the cut"),
        ("global-time", {"train_end": [1, 2]}, "held-out events before the cut"),
        ("global-time", {"valid_end": [4, 3]}, "training or validation events at or after the cut"),
        ("unseen-users", {"train_end": [4, 2]}, "held-out users with training events"),
        ("unseen-users", {"valid_end": [4, 2]}, "both validation and test"),
    ],
)
def test_audit_sees_each_leak(kind: str, change: dict[str, list[int]], said: str) -> None:
    split = replace(GOOD[kind], **{key: np.array(value) for key, value in change.items()})
    with pytest.raises(EnsuiteError, match=f"leakage audit.*{said}.*|.*{said}.*user row"):
        audit_arrays(OFFSETS, TIME, np.ones(8, np.int32), split, CARDS[kind], 1, "data")


def test_audit_sees_disorder_and_strange_items() -> None:
    split, card = GOOD["leave-one-out"], CARDS["leave-one-out"]
    with pytest.raises(EnsuiteError, match="1 events come before their predecessor; user row 1"):
        audit_arrays(
            OFFSETS, np.array([1, 2, 5, 8, 3, 2, 6, 9]), np.ones(8, np.int32), split, card, 1, "data"
        )
    with pytest.raises(EnsuiteError, match=r"item_idx outside 1\.\.1"):
        audit_arrays(OFFSETS, TIME, np.array([1] * 7 + [2], np.int32), split, card, 1, "data")
    with pytest.raises(EnsuiteError, match="offsets do not cover"):
        audit_arrays(np.array([0, 4, 7]), TIME, np.ones(8, np.int32), split, card, 1, "data")


def test_audit_of_a_dataset() -> None:
    log = pl.DataFrame({"user": [1] * 5, "item": range(5), "time": range(5)})
    dataset = prepare(log, out=Path(tempfile.mkdtemp()) / "d")
    audit(dataset)
    dataset.__dict__["split"] = Split(np.array([5]), np.array([4]), np.array([5]))
    with pytest.raises(EnsuiteError, match="leakage audit"):
        audit(dataset)
