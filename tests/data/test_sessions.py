"""Sessions: cut, filtered, held out, read; every step counted, nothing of a target in its history."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ensuite.data.act_r_logs import act_r_log
from ensuite.data.batches import read_history, read_shifted
from ensuite.data.dataset import Dataset, Split
from ensuite.data.leakage import audit, audit_arrays
from ensuite.data.prepare import PrepareConfig, prepare
from ensuite.data.samples import Samples, SamplesConfig
from ensuite.errors import EnsuiteError

MINUTE, HOUR = 60, 3_600
T = 1_600_000_000


def table(rows: list[tuple[str, list[tuple[int, str]]]], session: bool = False) -> pl.DataFrame:
    """Users' (minute, letters): each letter an item, a minute apart."""
    out = [
        {"user": user, "item": item, "time": T + MINUTE * (begin + n), "session": f"{user}{number}"}
        for user, sessions in rows
        for number, (begin, items) in enumerate(sessions)
        for n, item in enumerate(items)
    ]
    return pl.DataFrame(out) if session else pl.DataFrame(out).drop("session")


LOG = [
    ("a", [(0, "xyxz"), (100, "xy"), (200, "zwv"), (300, "yx"), (400, "vw")]),
    ("b", [(0, "xw"), (60, "z"), (120, "yz"), (500, "xyz")]),
    ("c", [(0, "xy")]),
]


def made(tmp_path: Path, log: Any = None, **settings: Any) -> Dataset:
    defaults: dict[str, Any] = {"split": "sessions", "session_gap": "20m", "held_sessions": (1, 2)}
    config = PrepareConfig(**(defaults | settings))
    return prepare(table(LOG) if log is None else log, out=tmp_path / "data", config=config)


def cases(data: Dataset, phase: Any) -> list[tuple[str, str, str]]:
    """User, history and targets of each case, as letters."""
    names = data.items["item_id"].to_list()
    found, users = data.cases(phase), data.users["user_id"].to_list()
    word = lambda a, b: "".join(names[i - 1] for i in data.item_idx[a:b])  # noqa: E731
    spans = zip(found.user, found.history_start, found.history_end, found.target_end)
    return [(users[u], word(a, b), word(b, c)) for u, a, b, c in spans]


def test_each_held_out_session_is_a_case_after_all_before_it(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert cases(data, "valid") == [("a", "xyzxy", "zwv"), ("b", "xw", "z")]
    assert cases(data, "test") == [
        ("a", "xyzxyzwv", "yx"), ("a", "xyzxyzwvyx", "vw"), ("b", "xwz", "yz"), ("b", "xwzyz", "xyz"),
    ]  # fmt: skip
    train = data.events("train")
    assert [int(n) for n in train.lengths] == [5, 2, 2]  # c is trained on whole
    assert data.card["split"]["users_too_short"] == 1
    assert data.card["report"]["sessions"]["sessions"] == 10
    assert data.card["report"]["sessions"]["phases"] == {"train": 4, "valid": 2, "test": 4}
    assert data.exclude == "none"
    audit(data)


def test_a_column_cuts_like_the_pauses_do(tmp_path: Path) -> None:
    by_gap = made(tmp_path / "gap")
    by_column = made(tmp_path / "column", table(LOG, session=True), session_gap=None)
    assert cases(by_gap, "test") == cases(by_column, "test")
    for data in (by_gap, by_column):
        assert data.column("session").tolist() == [int(n) for n in "0001122233440012233300"]


def test_filters_on_sessions_are_counted(tmp_path: Path) -> None:
    data = made(tmp_path, session_min=2, session_first=2, min_sessions=3, held_sessions=(1, 1))
    steps = {step["filter"]: (step["before"], step["after"]) for step in data.card["report"]["filters"]}
    assert steps == {
        "once a session": (23, 22),
        "sessions >= 2": (22, 21),
        "first 2 of a session": (21, 18),
        "users >= 3 sessions": (18, 16),
    }
    assert data.users["user_id"].to_list() == ["a", "b"]
    assert cases(data, "test") == [("a", "xyxyzwyx", "vw"), ("b", "xwyz", "xy")]
    assert data.column("session").tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"session_gap": None}, "sessions are asked for, and no column looks like one"),
        ({"session_gap": "soon"}, "session_gap = soon: a pause such as 20m"),
        ({"session_gap": "0m"}, "session_gap = 0m"),
        ({"session": "item"}, "sessions are cut by a column or by pauses"),
        ({"held_sessions": (0, 1)}, "held_sessions = 0 1: at least 1 each"),
        ({"held_sessions": (2, 5)}, "holds out 2 [+] 5 sessions and needs users with at least one more"),
        ({"session_min": -1}, "0 or more"),
        ({"session_gap": "10s"}, "every session holds one item only.*longer --session-gap"),
        ({"min_sessions": 9}, "the filters leave no event"),
    ],
)
def test_what_cannot_be_cut_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((EnsuiteError, ValueError), match=message):
        made(tmp_path, **settings)
    assert not (tmp_path / "data").exists()


def test_a_gap_needs_times(tmp_path: Path) -> None:
    with pytest.raises(EnsuiteError, match="--session-gap 20m needs times"):
        made(tmp_path, table(LOG).drop("time"))


def test_sessions_that_overlap_or_are_missing_are_refused(tmp_path: Path) -> None:
    log = table(LOG, session=True)
    mixed = log.with_columns(
        pl.when(pl.int_range(pl.len()) == 2).then(pl.lit("a1")).otherwise("session").alias("session")
    )
    with pytest.raises(EnsuiteError, match=r"2 sessions are not in one piece.*'a0'"):
        made(tmp_path, mixed, session_gap=None)
    gaps = log.with_columns(pl.when(pl.col("item") == "v").then(None).otherwise("session").alias("session"))
    with pytest.raises(EnsuiteError, match="2 events have no session"):
        made(tmp_path, gaps, session_gap=None)


def test_histories_count_their_sessions_from_zero(tmp_path: Path) -> None:
    events = made(tmp_path).events("all")
    start, end = np.array([3, 12]), np.array([8, 14])
    history = read_history(events, start, end)
    assert history.sessions is not None
    assert history.sessions.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]
    assert history.last(3).sessions.tolist() == [[0, 0, 0], [0, 0, 0]]  # type: ignore[union-attr]
    assert read_shifted(events, start, end)[0].sessions.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]  # type: ignore[union-attr]
    assert read_history(replace(events, session=None), start, end).sessions is None


def test_samples_end_with_every_strideth_session(tmp_path: Path) -> None:
    log = act_r_log((1, 1, 1), users=3, sessions=9).events
    data = made(tmp_path, log, session_gap=None)
    events = data.events("train")  # 6 sessions each
    session = np.asarray(data.column("session"))
    for stride, last in ((0, [5]), (2, [1, 3, 5]), (1, [1, 2, 3, 4, 5])):
        samples = Samples(
            events, SamplesConfig(kind="sessions", stride=stride), max_length=500, batch_size=9, seed=0
        )
        assert [sorted(session[samples.end[samples.user == u] - 1]) for u in range(3)] == [last] * 3
        assert (samples.start == events.offsets[samples.user]).all()
        batch = samples.read(np.arange(samples.n_samples), np.random.default_rng(0))
        assert batch.history.sessions is not None
        after_first = (batch.history.sessions > 0) & batch.history.mask
        assert ((batch.targets > 0) == after_first).all()
        assert (batch.targets == batch.history.items)[after_first].all()
    short = Samples(events, SamplesConfig(kind="sessions"), max_length=12, batch_size=9, seed=0)
    assert ((short.end - short.start) == 12).all()
    with pytest.raises(EnsuiteError, match=r"a session holds \d items, and the model reads 4 events"):
        Samples(events, SamplesConfig(kind="sessions"), max_length=4, batch_size=9, seed=0)
    with pytest.raises(EnsuiteError, match="need a dataset that is cut into sessions"):
        Samples(
            replace(events, session=None), SamplesConfig(kind="sessions"), max_length=9, batch_size=9, seed=0
        )
    one = replace(events, ends=events.offsets + 2)
    with pytest.raises(EnsuiteError, match="no user has the 2 training sessions"):
        Samples(one, SamplesConfig(kind="sessions"), max_length=9, batch_size=9, seed=0)


def test_the_audit_sees_a_session_that_is_partly_held_out(tmp_path: Path) -> None:
    data = made(tmp_path)
    split, session = data.split, np.asarray(data.column("session"))

    def check(split: Split, session: np.ndarray | None) -> None:
        audit_arrays(data.offsets, data.time, data.item_idx, split, data.card, data.n_items, "data", session)

    check(split, session)
    with pytest.raises(EnsuiteError, match="a session is partly held out"):
        check(replace(split, train_end=split.train_end - np.array([1, 0, 0])), session)
    swapped = session.copy()
    swapped[[2, 3]] = swapped[[3, 2]]
    with pytest.raises(EnsuiteError, match="not in one piece"):
        check(split, swapped)
    with pytest.raises(EnsuiteError, match="without a session column"):
        check(split, None)
    with pytest.raises(EnsuiteError, match="events after the end of test"):
        check(replace(split, test_end=split.test_end - np.array([1, 0, 0])), session)


def test_made_up_logs_are_the_same_for_a_seed_and_obey_the_weights() -> None:
    one, same, other = (act_r_log((0.6, 0.3, 0.1), users=20, seed=s).events for s in (1, 1, 2))
    assert one.equals(same)
    assert not one.equals(other)
    assert one.group_by("user", "session").agg(pl.col("item").is_duplicated().any())["item"].any() is False

    def kept(weights: tuple[float, float, float], group: str) -> float:
        """How many others of its group a track has beside it: if it comes again next, over if not."""
        log = act_r_log(weights, users=40, seed=3)
        labels = getattr(log, group)
        sessions = log.events.group_by("user", "session", maintain_order=True).agg("item")["item"].to_list()
        mates: dict[bool, list[int]] = {True: [], False: []}
        for this, after in pairwise(sessions):
            for track in this:
                mates[track in after].append(sum(labels[track] == labels[other] for other in this) - 1)
        return float(np.mean(mates[True]) / np.mean(mates[False]))

    assert kept((0, 1, 0), "company") > 1.5 * kept((1, 0, 0), "company")
    assert kept((0, 0, 1), "style") > 1.3 * kept((1, 0, 0), "style")
    with pytest.raises(ValueError, match="not all 0"):
        act_r_log((0, 0, 0))
