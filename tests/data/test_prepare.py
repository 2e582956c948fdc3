"""What `prepare` computes, against plain Python: order, numbers, ragged arrays, filters, columns, tables."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensuite.data.columns import assign_roles
from ensuite.data.dataset import Dataset
from ensuite.data.filters import frequent
from ensuite.data.ids import compact, encode
from ensuite.data.order import sort_order
from ensuite.data.prepare import PrepareConfig, prepare
from ensuite.errors import EnsuiteError

EVENT = st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 4))
LOGS = st.lists(EVENT, min_size=1, max_size=60)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def prepared(table: Any, **options: Any) -> Dataset:
    return prepare(table, out=Path(tempfile.mkdtemp()) / "data", config=PrepareConfig(**options))


def frame(events: list[tuple[int, int, int]], start: int = 1_600_000_000) -> pl.DataFrame:
    users, items, times = zip(*events)
    return pl.DataFrame({"user": users, "item": items, "time": [start + t for t in times]})


def sequences(dataset: Dataset) -> dict[Any, list[Any]]:
    """Item ids of each user id, read back from the folder."""
    ids = dataset.items["item_id"].to_numpy()
    rows = np.split(np.asarray(dataset.item_idx), np.asarray(dataset.offsets[1:-1]))
    return {user: ids[row - 1].tolist() for user, row in zip(dataset.users["user_id"], rows)}


@QUICK
@given(LOGS)
def test_ragged_arrays_equal_a_dictionary_of_lists(events: list[tuple[int, int, int]]) -> None:
    events = [*events, (9, 0, 0), (9, 0, 1), (9, 0, 2)]  # one user that leave-one-out can use
    want = defaultdict(list)
    for user, item, _ in sorted(events, key=lambda e: e[2]):  # Python's sort is stable
        want[user].append(item)
    dataset = prepared(frame(events))
    assert sequences(dataset) == dict(want)
    assert list(dataset.users["user_id"]) == sorted(want)
    assert list(dataset.items["item_id"]) == sorted({item for _, item, _ in events})


@QUICK
@given(st.lists(st.one_of(st.integers(0, 2**63 - 1), st.integers(0, 50)), min_size=1))
def test_id_map_round_trips(ids: list[int]) -> None:
    codes, known = encode(pl.Series(ids, dtype=pl.Int64))
    assert known.gather(codes).to_list() == ids
    assert known.to_list() == sorted(set(ids))
    assert codes.dtype == np.int32


@QUICK
@given(st.lists(st.text(max_size=3), min_size=1))
def test_text_id_map_round_trips(ids: list[str]) -> None:
    codes, known = encode(pl.Series(ids, dtype=pl.String))
    assert known.gather(codes).to_list() == ids
    assert known.to_list() == sorted(set(ids), key=lambda s: s.encode())


def test_large_ids_never_pass_through_floats() -> None:
    big = [2**53, 2**53 + 1, 2**53 + 2]
    dataset = prepared(pl.DataFrame({"user": [1, 1, 1], "item": big}))
    assert dataset.items["item_id"].to_list() == big
    with pytest.raises(EnsuiteError, match="not a whole number"):
        prepared(pl.DataFrame({"user": [1, 1, 1], "item": [float(b) for b in big]}))


def test_whole_float_ids_are_converted_and_said() -> None:
    dataset = prepared(pl.DataFrame({"user": [1.0, 1.0, 1.0], "item": [12.0, 11.0, 10.0]}))
    assert dataset.items.schema["item_id"] == pl.Int64
    assert any("converted exactly" in note for note in dataset.card["report"]["notes"])


def test_leading_zeros_stay() -> None:
    path = Path(tempfile.mkdtemp()) / "log.csv"
    path.write_text("user,asin\n1,0031887\n1,0031888\n1,31887\n")
    assert prepared(path).items["item_id"].to_list() == ["0031887", "0031888", "31887"]


@QUICK
@given(LOGS, st.integers(1, 4), st.integers(1, 4))
def test_minimum_counts_reach_the_fixed_point(
    events: list[tuple[int, int, int]], min_user: int, min_item: int
) -> None:
    left = list(events)
    while True:
        users, items = Counter(e[0] for e in left), Counter(e[1] for e in left)
        fewer = [e for e in left if users[e[0]] >= min_user and items[e[1]] >= min_item]
        if len(fewer) == len(left):
            break
        left = fewer
    user, item = (np.array([e[k] for e in events], np.int32) for k in (0, 1))
    mask, _ = frequent(user, item, min_user, min_item)
    assert [e for e, keep in zip(events, mask) if keep] == left


def test_one_pass_stops_early() -> None:
    user, item = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 2, 2])
    assert frequent(user, item, 2, 2)[0].tolist() == [False, False, False, True, True]
    assert frequent(user, item, 2, 2, one_pass=True)[0].tolist() == [False, False, True, True, True]


@QUICK
@given(st.lists(st.integers(0, 10), min_size=1, max_size=30))
def test_compact_closes_gaps(codes: list[int]) -> None:
    new, there = compact(np.array(codes, np.int32), 11)
    assert there[new].tolist() == codes
    assert sorted(set(new.tolist())) == list(range(len(there)))


@QUICK
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**61)), min_size=1), st.booleans())
def test_order_is_stable_whether_or_not_the_key_fits_one_integer(
    rows: list[tuple[int, int]], narrow: bool
) -> None:
    rows = [(u, t % 5 if narrow else t) for u, t in rows]
    user, time = np.array([r[0] for r in rows], np.int32), np.array([r[1] for r in rows], np.int64)
    order = sort_order(user, time, None)
    want = sorted(range(len(rows)), key=lambda k: rows[k])
    assert want == (list(range(len(rows))) if order is None else order.tolist())


class TestOrder:
    LOG = pl.DataFrame({"user": [1] * 5, "item": [50, 40, 30, 20, 10], "time": [3, 1, 1, 1, 2]})

    def test_ties_keep_the_order_of_the_source(self) -> None:
        dataset = prepared(self.LOG)
        assert sequences(dataset) == {1: [40, 30, 20, 10, 50]}
        assert dataset.card["tie_share"] == 3 / 5
        assert "ties in source order" in dataset.card["order"]

    def test_shuffled_ties_are_repeatable_and_within_the_tie(self) -> None:
        runs = {seed: sequences(prepared(self.LOG, ties="shuffle", seed=seed))[1] for seed in range(12)}
        assert all(run[3:] == [10, 50] and sorted(run[:3]) == [20, 30, 40] for run in runs.values())
        assert len({tuple(run) for run in runs.values()}) > 1
        assert sequences(prepared(self.LOG, ties="shuffle", seed=3))[1] == runs[3]

    def test_order_column_breaks_ties(self) -> None:
        log = self.LOG.with_columns(n=pl.Series([0, 3, 2, 1, 0]))
        assert sequences(prepared(log, order="n")) == {1: [20, 30, 40, 10, 50]}

    def test_position_stands_for_time(self) -> None:
        log = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [7, 8, 9], "position": [2, 1, 0]})
        dataset = prepared(log)
        assert sequences(dataset) == {1: [9, 8, 7]}
        assert dataset.time is None


class TestFilters:
    LOG = pl.DataFrame(
        {
            "user": [1, 1, 1, 1, 1, 2, 2, 2],
            "item": [5, 5, 5, 6, 7, 5, 6, 7],
            "time": [10, 10, 20, 30, 40, 10, 20, 30],
            "rating": [5.0, 5.0, 4.0, 2.0, 5.0, 5.0, 3.0, 4.0],
            "kind": ["buy", "buy", "view", "view", "buy", "buy", "view", "buy"],
        }
    ).with_columns(pl.col("time") + 1_600_000_000)

    def test_nothing_is_dropped_by_default_and_all_is_counted(self) -> None:
        report = prepared(self.LOG).card["report"]
        assert (report["events"], report["duplicates"], report["consecutive_repeats"]) == (8, 1, 2)

    @pytest.mark.parametrize(
        ("options", "want"),
        [
            ({"drop_duplicates": True}, {1: [5, 5, 6, 7], 2: [5, 6, 7]}),
            ({"drop_repeats": True}, {1: [5, 6, 7], 2: [5, 6, 7]}),
            ({"min_rating": 4}, {1: [5, 5, 5, 7], 2: [5, 7]}),
            ({"kinds": ("buy",)}, {1: [5, 5, 7], 2: [5, 7]}),
            ({"kinds": ("buy",), "min_rating": 5}, {1: [5, 5, 7], 2: [5]}),
            ({"since": "1600000020"}, {1: [5, 6, 7], 2: [6, 7]}),
            ({"until": "2020-09-13T12:27:10"}, {1: [5, 5, 5], 2: [5, 6]}),
            ({"last": 3}, {1: [5, 6, 7], 2: [5, 6, 7]}),
            ({"min_user": 4}, {1: [5, 5, 5, 6, 7]}),
        ],
    )
    def test_each(self, options: dict[str, Any], want: dict[int, list[int]]) -> None:
        dataset = prepared(self.LOG, **options)
        assert sequences(dataset) == want
        steps = dataset.card["report"]["filters"]
        assert steps[0]["before"] == 8
        assert steps[-1]["after"] == sum(map(len, want.values()))
        assert all(a["after"] == b["before"] for a, b in pairwise(steps))

    def test_same_item_at_one_time_with_another_kind_is_no_duplicate(self) -> None:
        log = pl.DataFrame(
            {"user": [1] * 3, "item": [5] * 3, "time": [9] * 3, "kind": ["view", "buy", "view"]}
        )
        assert prepared(log).card["report"]["duplicates"] == 1


class TestColumnsAndTables:
    def test_event_columns_follow_their_events(self) -> None:
        log = pl.DataFrame(
            {
                "user": [2, 1, 1, 1],
                "item": [10, 30, 20, 10],
                "time": [4, 3, 2, 1],
                "action": ["view", "buy", None, "view"],
                "price": [1, 2, None, 4],
                "score": [0.5, 1.5, 2.5, 3.5],
                "liked": [True, False, True, True],
            }
        )
        dataset = prepared(log, keep=("price", "liked"))
        assert dataset.card["columns"] == ["kind", "liked", "price", "rating"]
        assert dataset.column("rating").tolist() == [3.5, 2.5, 1.5, 0.5]
        labels = dataset.labels("kind")
        assert labels is not None
        assert [labels[c] if c >= 0 else None for c in dataset.column("kind").tolist()] == [
            "view",
            None,
            "buy",
            "view",
        ]
        np.testing.assert_array_equal(dataset.column("price"), [4, np.nan, 2, 1])
        assert dataset.column("liked").tolist() == [1, 1, 0, 1]
        assert dataset.labels("price") is None
        with pytest.raises(EnsuiteError, match="no event column 'prize'; did you mean 'price'"):
            dataset.column("prize")

    def test_item_and_user_tables(self, tmp_path: Path) -> None:
        log = pl.DataFrame({"user": ["b", "b", "b", "a"], "item": [3, 1, 2, 1]})
        (tmp_path / "items.csv").write_text("product_id,Name,price\n9,never,1\n2,two,2\n1,one,1\n2,again,2\n")
        pl.DataFrame({"user_id": ["a", "b"], "age": [30, 40]}).write_parquet(tmp_path / "users.parquet")
        dataset = prepared(log, items=str(tmp_path / "items.csv"), users=str(tmp_path / "users.parquet"))
        assert dataset.items.to_dicts() == [
            {"item_id": 1, "title": "one", "price": 1},
            {"item_id": 2, "title": "two", "price": 2},
            {"item_id": 3, "title": None, "price": None},
        ]
        assert dataset.users["age"].to_list() == [30, 40]
        notes = " ".join(dataset.card["report"]["notes"])
        assert "1 of 3 have no row" in notes
        assert "repeat an id" in notes

    def test_item_table_of_other_ids_is_refused(self, tmp_path: Path) -> None:
        log = pl.DataFrame({"user": [1, 1, 1], "item": [3, 1, 2]})
        for ids, said in (("x\ny", "does not hold the log's ids"), ("7\n8", "none of the log's 3 items")):
            (tmp_path / "items.csv").write_text(f"item_id\n{ids}\n")
            with pytest.raises(EnsuiteError, match=said):
                prepared(log, items=str(tmp_path / "items.csv"))

    def test_session_stands_for_a_missing_user(self) -> None:
        dataset = prepared(pl.DataFrame({"session_id": [1, 1, 1], "item_id": [3, 1, 2]}))
        assert dataset.card["source"]["columns"]["user"]["column"] == "session_id"

    def test_no_table_at_all(self) -> None:
        with pytest.raises(EnsuiteError, match="a dict is no log"):
            prepared({"user": [1]})

    def test_same_log_same_bytes(self) -> None:
        a, b = prepared(TestFilters.LOG), prepared(TestFilters.LOG)
        assert (a.path / "card.json").read_bytes() == (b.path / "card.json").read_bytes()


def test_movielens_1m_five_core_has_the_published_counts(tmp_path: Path) -> None:
    raw = Path(__file__).parents[2] / "data" / "ml-1m-raw"
    if not raw.exists():
        pytest.skip("no data/ml-1m-raw (MovieLens-1M as Parquet); its licence keeps it out of the repository")
    dataset = prepare(
        "ml-1m", out=tmp_path / "d", config=PrepareConfig(archive=str(raw), min_user=5, min_item=5)
    )
    assert (dataset.n_events, dataset.n_users, dataset.n_items) == (999_611, 6_040, 3_416)


class TestGuesses:
    @pytest.mark.parametrize(
        ("names", "want"),
        [
            (["User ID", "movieId", "Timestamp"], ("User ID", "movieId", "Timestamp")),
            (
                ["user_id:token", "item_id:token", "timestamp:float"],
                ("user_id:token", "item_id:token", "timestamp:float"),
            ),
            (
                ["reviewerID", "asin", "reviewDate", "unixReviewTime"],
                ("reviewerID", "asin", "unixReviewTime"),
            ),
            (["date", "timestamp_ms", "item", "uid"], ("uid", "item", "timestamp_ms")),
            (["visitorid", "itemid", "event", "timestamp"], ("visitorid", "itemid", "timestamp")),
        ],
    )
    def test_columns(self, names: list[str], want: tuple[str, str, str]) -> None:
        roles = {r.role: r.column for r in assign_roles("log", names, PrepareConfig())}
        assert (roles["user"], roles["item"], roles["time"]) == want

    def test_flags_win_and_a_column_has_one_role(self) -> None:
        config = PrepareConfig(item="user", user="item", keep=("date",))
        roles = {
            r.role: (r.column, r.how) for r in assign_roles("log", ["user", "item", "date", "ts"], config)
        }
        assert roles == {
            k: (v, h)
            for k, v, h in [
                ("user", "item", "given"),
                ("item", "user", "given"),
                ("time", "ts", "guessed"),
                ("date", "date", "given"),
            ]
        }

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"user": "item", "item": "item"}, "cannot be both user and item"),
            ({"min_rating": 3}, "--min-rating needs a rating column"),
            ({"kinds": ("buy",)}, "--kinds needs a kind column"),
            ({"keep": ("prise",)}, r"no column 'prise' \(--keep\); did you mean 'price'"),
        ],
    )
    def test_contradictions(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(EnsuiteError, match=said):
            assign_roles("log", ["user", "item", "price"], PrepareConfig(**options))

    def test_without_times_the_order_of_rows_is_said(self) -> None:
        dataset = prepared(pl.DataFrame({"user": [1, 1, 1], "item": [3, 1, 2]}))
        assert dataset.card["order"] == "order of the source"
        assert any("no column looks like a time" in note for note in dataset.card["report"]["notes"])


def test_ids_are_encoded_alike_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensuite.data.ids.CHUNK", 3)
    codes, known = encode(pl.Series(["b", "a", "c", "a", "b", "d", "a"]))
    assert codes.tolist() == [1, 0, 2, 0, 1, 3, 0]
    assert known.to_list() == ["a", "b", "c", "d"]
