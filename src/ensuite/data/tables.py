"""From a frame of any engine to the columns we work on: the one Narwhals path of Polars, pandas, Arrow, DuckDB and Spark.

Two passes over the frame, both done by its own engine: a survey (one row of counts: nulls, negative ids, what each filter
keeps), and the filtered columns, which come back as Polars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import polars as pl

from ensuite.data.columns import Role
from ensuite.data.options import PrepareConfig
from ensuite.data.readers import Log
from ensuite.errors import EnsuiteError

MISSING = ("", "nan", "NaN", "null", "NULL", "None", "<NA>")
REMEDY = {
    "null": "fill it in or remove the row",
    "NaN": "fill it in or remove the row",
    "negative": "ids are 0 or more, or text",
}


@dataclass(frozen=True)
class Step:
    """One filter: events before and after, and what it was."""

    name: str
    before: int
    after: int
    why: str

    def as_dict(self) -> dict[str, Any]:
        return {"filter": self.name, "before": self.before, "after": self.after, "why": self.why}


@dataclass(frozen=True)
class Collected:
    """The log's columns under their roles' names, after the filters that look at one row alone."""

    columns: pl.DataFrame
    steps: tuple[Step, ...]
    notes: tuple[str, ...]


def collect(log: Log, roles: Sequence[Role], config: PrepareConfig) -> Collected:
    """Check ids, apply the filters on kind and rating, and bring the columns of ``roles`` into memory.

    Raises
    ------
    EnsuiteError
        For null, NaN or negative ids (with file, row, column and value), ids that are no whole numbers, an empty log.
    """
    names = {r.role: r.column for r in roles}
    frame = log.frame.select(*(nw.col(column).alias(role) for role, column in names.items()))
    schema = frame.collect_schema()
    checks = [
        check for role in ("user", "item") for check in _id_checks(log, role, names[role], schema[role])
    ]
    masks = _row_filters(config)
    aggregates = [nw.len().alias("rows")]
    aggregates += [expr.sum().alias(f"{role}.{what}") for role, what, expr in checks]
    passed: nw.Expr | None = None
    for name, mask, _ in masks:
        passed = mask if passed is None else passed & mask
        aggregates.append(passed.cast(nw.Int64).sum().alias(f"after.{name}"))
    counts = frame.select(*aggregates).collect("polars").to_native().row(0, named=True)
    if counts["rows"] == 0:
        raise EnsuiteError(f"{log.name}: no events: the table is empty")
    for role, what, expr in checks:
        if counts[f"{role}.{what}"]:
            raise EnsuiteError(_bad_id(log, frame, role, names[role], what, expr, counts[f"{role}.{what}"]))
    steps, before = [], counts["rows"]
    for name, _, why in masks:
        after = int(counts[f"after.{name}"] or 0)
        steps.append(Step(name, before, after, why))
        before = after
    if passed is not None:
        frame = frame.filter(passed)
    needed = [r for r in names if r != "rating" or config.rating is not None or "rating" in names]
    frame = frame.select(*(_as_id(schema[r], r) if r in ("user", "item") else nw.col(r) for r in needed))
    try:
        columns = frame.collect("polars").to_native()
    except (pl.exceptions.PolarsError, OverflowError) as error:
        raise EnsuiteError(f"{log.name}: cannot be read: {str(error).splitlines()[0]}") from None
    notes = [
        f"{names[r]}: ids held as {schema[r]} are whole numbers, converted exactly"
        for r in ("user", "item")
        if schema[r].is_float() or schema[r].is_decimal()
    ]
    return Collected(columns, tuple(steps), tuple(notes))


def _id_checks(log: Log, role: str, column: str, dtype: nw.dtypes.DType) -> list[tuple[str, str, nw.Expr]]:
    """What must not occur in an id column of this type: (role, what, row-wise expression)."""
    col = nw.col(role)
    null = [(role, "null", col.is_null())]
    if dtype.is_integer():
        return [*null, (role, "negative", col < 0)]
    if dtype.is_float():
        whole = col.is_null() | col.is_nan() | (col.abs() >= 2.0**53) | (col != col.round(0))
        return [
            *null,
            (role, "NaN", col.is_nan()),
            (role, "negative", col < 0),
            (role, "not a whole number", whole),
        ]
    if dtype.is_decimal():
        return [*null, (role, "negative", col < 0), (role, "not a whole number", col != col.round(0))]
    if dtype in (nw.String, nw.Categorical, nw.Enum):
        return [*null, (role, "null", col.cast(nw.String).is_in(MISSING))]
    raise EnsuiteError(
        f"{log.name}: column '{column}' holds {dtype}: {role} ids are integers or text; convert it, or name another column"
    )


def _bad_id(
    log: Log, frame: nw.LazyFrame[Any], role: str, column: str, what: str, expr: nw.Expr, count: int
) -> str:
    """Find the first bad row; only now, when there is one, is the row's number worth a pass."""
    found = frame.select(nw.col(role).alias("value"), expr.alias("bad")).collect("polars").to_native()
    row = found["bad"].arg_true()[0]
    value = found["value"][row]
    remedy = REMEDY.get(what, "ids are integers or text, never fractions; convert the column")
    return f"{log.at(row)}: column '{column}' ({role} id): {what}: {value!r} ({count:,} such rows); {remedy}"


def _as_id(dtype: nw.dtypes.DType, role: str) -> nw.Expr:
    text = dtype in (nw.String, nw.Categorical, nw.Enum)
    return nw.col(role).cast(nw.String if text else nw.Int64)


def _row_filters(config: PrepareConfig) -> list[tuple[str, nw.Expr, str]]:
    """The filters that look at one row alone: (name, expression, what is dropped)."""
    filters = []
    if config.kinds:
        kinds = ", ".join(config.kinds)
        filters.append(
            (
                f"kind in {kinds}",
                nw.col("kind").cast(nw.String).is_in(config.kinds),
                f"events of other kinds than {kinds}",
            )
        )
    if config.min_rating is not None:
        low = f"{config.min_rating:g}"
        filters.append(
            (
                f"rating >= {low}",
                nw.col("rating") >= config.min_rating,
                f"events rated below {low}, or not rated",
            )
        )
    return filters


def first_null(log: Log, frame: pl.DataFrame, column: str) -> str:
    """Name the row of the first null in ``column``."""
    return log.at(int(frame[column].is_null().arg_true()[0]))
