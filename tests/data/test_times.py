"""Times of every kind become integers of one unit, or a message that names the row."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensuite.data.times import TICKS, parse_bound, say_time, to_ticks
from ensuite.errors import EnsuiteError


def ticks(values: Any, unit: str | None = None) -> tuple[list[int], str]:
    series = values if isinstance(values, pl.Series) else pl.Series(values)
    found, said, _ = to_ticks(series, "ts", lambda row: f"log.csv: row {row + 1}", unit)
    return found.tolist(), said


@given(st.lists(st.integers(10**8, 9 * 10**9), min_size=1), st.sampled_from(list(TICKS)))
def test_unit_of_integers_is_found(seconds: list[int], unit: str) -> None:
    values = [s * TICKS[unit] for s in seconds]
    assert ticks(values) == (values, unit)


@given(st.lists(st.datetimes(datetime(1950, 1, 1), datetime(2200, 1, 1)), min_size=1))
def test_datetimes_lose_nothing(moments: list[datetime]) -> None:
    found, unit = ticks(pl.Series(moments, dtype=pl.Datetime("us")))
    back = [datetime(1970, 1, 1) + timedelta(microseconds=t * (10**6 // TICKS[unit])) for t in found]
    assert back == moments


DAY = 1_714_521_600  # 2024-05-01


@pytest.mark.parametrize(
    ("values", "want"),
    [
        (["2024-05-01", "2024-05-02"], ([DAY, DAY + 86_400], "s")),
        (["2024-05-01T00:00:00Z", "2024-05-01T00:00:01Z"], ([DAY, DAY + 1], "s")),
        (["2024-05-01T02:00:00+02:00"], ([DAY], "s")),
        (["2024-05-01 00:00:00.250", "2024-05-01 00:00:01"], ([DAY * 1000 + 250, DAY * 1000 + 1000], "ms")),
        (["2024-05-01", "2024-05-01 00:00:05"], ([DAY, DAY + 5], "s")),
        ([str(DAY), str(DAY + 1)], ([DAY, DAY + 1], "s")),
        ([date(2024, 5, 1)], ([DAY], "s")),
        ([datetime(2024, 5, 1, tzinfo=UTC)], ([DAY], "s")),
        ([float(DAY)], ([DAY], "s")),
        ([DAY + 0.5], ([(DAY * 2 + 1) * 500_000], "us")),
        ([20240501, 20240502], ([DAY, DAY + 86_400], "s")),
        ([1, 2, 3], ([1, 2, 3], "s")),
    ],
)
def test_forms_of_time(values: list[Any], want: tuple[list[int], str]) -> None:
    assert ticks(values) == want


def test_given_unit_is_taken() -> None:
    assert ticks([5, 2_000_000_000], unit="ms") == ([5, 2_000_000_000], "ms")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([DAY, None], r"row 2: column 'ts' \(time\): None is no time"),
        ([DAY, float("nan")], "row 2: column 'ts' .*nan is no time"),
        ([DAY, DAY * 1000], "row 1: .* looks like s, others .* like ms: mixed units"),
        ([DAY * 10**6, DAY * 1000], "row 2: .* looks like ms, others .* like us: mixed units"),
        ([DAY, 0], "row 2: .* 0 is before 1973 or no date"),
        ([-1, -2], "row 2: .* -2 is negative"),
        ([5 * 10**10], "fits no unit"),
        (["2024-05-01", "soon"], "row 2: .* 'soon' is no time"),
        (["soon", "later"], "row 1: .* 'soon' is no time"),
        ([str(DAY), str(DAY), "x"], "row 3: .* 'x' is no time"),
        ([True], "holds Boolean"),
    ],
)
def test_what_is_no_time(values: list[Any], said: str) -> None:
    with pytest.raises(EnsuiteError, match=said):
        ticks(pl.Series(values, strict=False))


def test_bounds() -> None:
    assert parse_bound("2024-05-01", "ms", "since") == DAY * 1000
    assert parse_bound("2024-05-01T02:00+02:00", "s", "since") == DAY
    assert parse_bound("17", "us", "since") == 17
    assert say_time(DAY * 1000, "ms") == "2024-05-01T00:00:00"
    with pytest.raises(EnsuiteError, match="--since tomorrow: neither"):
        parse_bound("tomorrow", "s", "since")
