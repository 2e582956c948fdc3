"""Times of a log as integers in one unit: found, checked, said."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import polars as pl

from ensuite.errors import EnsuiteError

TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Unix times from 1973 to 2286 in each unit; the ranges do not meet, so that one value shows its unit.
RANGES = {"s": (10**8, 10**10), "ms": (10**11, 10**13), "us": (10**14, 10**16), "ns": (10**17, 10**19)}
REMEDY = (
    "times are integers (s, ms, us or ns since 1970), ISO 8601 text such as "
    "2024-05-17T08:30:00Z, or datetimes"
)

GAP_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}

Where = Callable[[int], str]
"""Names the file and row of an event, given its place in the column."""


def to_ticks(
    times: pl.Series, column: str, where: Where, unit: str | None = None
) -> tuple[np.ndarray, str, str]:
    """Return times as int64, their unit, and a sentence that says what was found.

    Datetimes and text come back in the coarsest unit that loses nothing; without a zone they are taken as
    UTC.

    Raises
    ------
    EnsuiteError
        For a null, a value that is no time, or integers of which some are in one unit and some in another.
    """
    _no_nulls(times, times, column, where)
    dtype = times.dtype
    if dtype == pl.String or dtype in (pl.Categorical, pl.Enum):
        text = times.cast(pl.String)
        number = text.cast(pl.Int64, strict=False)
        if number.null_count() < len(text) and (
            number.null_count() == 0 or number.null_count() <= len(text) // 2
        ):
            _no_nulls(number, text, column, where)
            times = number
        else:
            times = _parse_text(text, column, where)
    elif dtype == pl.Date:
        times = times.cast(pl.Datetime("us"))
    if isinstance(times.dtype, pl.Datetime):
        return _from_datetime(times)
    if times.dtype.is_float() or times.dtype.is_decimal():
        return _from_float(times.cast(pl.Float64), column, where, unit)
    if not times.dtype.is_integer():
        raise EnsuiteError(f"{where(0)}: column '{column}' (time) holds {dtype}; {REMEDY}")
    return _from_integer(times.cast(pl.Int64).to_numpy(), column, where, unit)


def _no_nulls(parsed: pl.Series, source: pl.Series, column: str, where: Where) -> None:
    if parsed.null_count():
        row = int(parsed.is_null().arg_true()[0])
        raise EnsuiteError(
            f"{where(row)}: column '{column}' (time): {source[row]!r} is no time "
            f"({parsed.null_count():,} such rows); "
            f"{REMEDY}; mend or remove the row"
        )


def _parse_text(text: pl.Series, column: str, where: Where) -> pl.Series:
    try:
        parsed = text.str.to_datetime(time_zone="UTC", strict=False)
    except pl.exceptions.ComputeError:  # no pattern fits the first values
        parsed = pl.Series([None] * len(text), dtype=pl.Datetime("us"))
    if parsed.null_count():  # files with and without a time of day, with and without fractions
        for pattern in ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"):
            more = text.str.to_datetime(pattern, strict=False, time_unit="us", time_zone="UTC")
            parsed = parsed.cast(pl.Datetime("us", "UTC")).zip_with(parsed.is_not_null(), more)
    _no_nulls(parsed, text, column, where)
    return parsed


def _from_datetime(times: pl.Series) -> tuple[np.ndarray, str, str]:
    held = times.dtype.time_unit or "us"  # type: ignore[attr-defined]
    zone = times.dtype.time_zone  # type: ignore[attr-defined]
    ticks = times.to_physical().to_numpy()
    unit = next(u for u in TICKS if u == held or not np.any(ticks % (TICKS[held] // TICKS[u])))
    said = "datetimes" + (
        ", converted to UTC" if zone and zone != "UTC" else "" if zone else " without a zone, taken as UTC"
    )
    return ticks // (TICKS[held] // TICKS[unit]), unit, f"{said}, stored in {unit}"


def _from_float(times: pl.Series, column: str, where: Where, unit: str | None) -> tuple[np.ndarray, str, str]:
    values = times.to_numpy()
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(bad.argmax())
        raise EnsuiteError(
            f"{where(row)}: column '{column}' (time): {values[row]} is no time; {REMEDY}; mend or remove "
            "the row"
        )
    if not np.any(values % 1):
        ticks, unit, said = _from_integer(values.astype(np.int64), column, where, unit)
        return ticks, unit, f"{said}; held as floats, all whole, converted exactly"
    _, held, _ = _from_integer(values.astype(np.int64), column, where, unit)
    finer = {"s": "us", "ms": "us"}.get(held)
    if finer is None:
        raise EnsuiteError(
            f"{where(0)}: column '{column}' (time): fractions of {held}; round them to integers"
        )
    return (
        np.rint(values * (TICKS[finer] / TICKS[held])).astype(np.int64),
        finer,
        f"fractions of {held}, stored in {finer}",
    )


def _from_integer(
    ticks: np.ndarray, column: str, where: Where, unit: str | None
) -> tuple[np.ndarray, str, str]:
    if unit is not None:
        return ticks, unit, f"integers, {unit} as given"
    low, high = int(ticks.min()), int(ticks.max())
    found = next((u for u, (a, b) in RANGES.items() if a <= high < b), None)
    if low >= 19_000_101 and high <= 21_001_231:
        days = pl.Series(ticks).cast(pl.String).str.to_date("%Y%m%d", strict=False)
        if not days.null_count():
            return (
                days.cast(pl.Datetime("us")).to_physical().to_numpy() // 10**6,
                "s",
                "integers read as dates, YYYYMMDD; stored in s",
            )
    if low < 0:
        raise EnsuiteError(
            f"{where(int(ticks.argmin()))}: column '{column}' (time): {low} is negative; {REMEDY}; mend "
            "or remove the row, "
            "or give --time-unit"
        )
    if found is None:
        if high < RANGES["s"][0]:
            return (
                ticks,
                "s",
                "small integers, no dates: taken as seconds from some start (--time-unit says otherwise)",
            )
        raise EnsuiteError(
            f"{where(int(ticks.argmax()))}: column '{column}' (time): {high} fits no unit; {REMEDY}; or "
            "give --time-unit"
        )
    if low >= RANGES[found][0]:
        return (
            ticks,
            found,
            f"integers, found to be {found}: {say_time(low, found)} to {say_time(high, found)}",
        )
    odd = int((ticks < RANGES[found][0]).argmax())
    other = next((u for u, (a, b) in RANGES.items() if a <= int(ticks[odd]) < b), None)
    what = f"looks like {other}, others" if other else "is before 1973 or no date, others"
    raise EnsuiteError(
        f"{where(odd)}: column '{column}' (time): {int(ticks[odd])} {what} (as {high}) like {found}: "
        "mixed units; "
        f"convert them to one unit, or give --time-unit if all are in the same"
    )


def say_time(ticks: int, unit: str) -> str:
    """Return a time as ISO text, to the second.

    >>> say_time(978300760, "s")
    '2000-12-31T22:12:40'
    """
    try:
        return datetime.fromtimestamp(ticks // TICKS[unit], UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(ticks)


def parse_bound(text: str, unit: str, flag: str) -> int:
    """Return a time given on the command line (ISO text, or a number in the log's unit) as ticks.

    >>> parse_bound("2001-01-01", "s", "since")
    978307200
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise EnsuiteError(
            f"--{flag} {text}: neither an ISO date (2024-05-17, 2024-05-17T08:30) nor a number in {unit}"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * TICKS[unit] + moment.microsecond * TICKS[unit] // 10**6


def parse_gap(text: str) -> int:
    """Return a pause in seconds: ``20m``, ``90s``, ``1h``, ``2d``, or a plain number of seconds.

    >>> parse_gap("20m"), parse_gap("90")
    (1200, 90)
    """
    match = re.fullmatch(r"(\d+)([smhd]?)", text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"session_gap = {text}: a pause such as 20m, 90s, 1h or 2d is needed")
    return int(match[1]) * GAP_SECONDS[match[2]]
