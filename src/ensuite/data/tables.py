"""From a frame of any engine to the columns we work on: the one Narwhals path of Polars, pandas, Arrow,
DuckDB and Spark.

Two passes over the frame, both done by its own engine: a survey (one row of counts: nulls, negative ids, what
each filter keeps), and the filtered columns, which come back as Polars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import narwhals as nw
import polars as pl

from ensuite.data.columns import Role
from ensuite.data.options import PrepareConfig
from ensuite.data.readers import Log
from ensuite.errors import EnsuiteError

MISSING = ("", "nan", "NaN", "null", "NULL", "None", "<NA>")
FILL_IN = "fill it in or remove the row"
REMEDY = {"null": FILL_IN, "missing": FILL_IN, "NaN": FILL_IN, "negative": "ids are 0 or more, or text"}


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

    columns: dict[str, pl.Series]
    """A dictionary, so that each column can be let go of as soon as it is encoded."""
    steps: tuple[Step, ...]
    notes: tuple[str, ...]
    at: Callable[[int], str]
    """Names file and row, in the log as it was before the filters, of a row of ``columns``."""


def collect(log: Log, roles: Sequence[Role], config: PrepareConfig) -> Collected:
    """Check ids, apply the filters on kind and rating, and bring the columns of ``roles`` into memory.

    Raises
    ------
    EnsuiteError
        For null, NaN or negative ids (with file, row, column and value), ids that are no whole numbers, an
        empty log.
    """
    names = {r.role: r.column for r in roles}
    frame = log.frame.select(*(nw.col(column).alias(role) for role, column in names.items()))
    schema = frame.collect_schema()
    checks = [
        (role, *check)
        for role in ("user", "item")
        for check in _id_checks(log, role, names[role], schema[role])
    ]
    filters = _row_filters(log, config, names, schema)
    passing = list(accumulate((expr for _, expr, _ in filters), lambda a, b: a & b))
    survey = [
        nw.len().alias("rows"),
        *(expr.cast(nw.Int64).sum().alias(f"{role}.{what}") for role, what, expr in checks),
    ]
    survey += [expr.cast(nw.Int64).sum().alias(f"after.{k}") for k, expr in enumerate(passing)]
    counts = frame.select(*survey).collect("polars").to_native().row(0, named=True)
    if counts["rows"] == 0:
        raise EnsuiteError(f"{log.name}: no events: the table is empty")
    for role, what, expr in checks:
        if counts[f"{role}.{what}"]:
            raise EnsuiteError(_bad_id(log, frame, role, names[role], what, expr, counts[f"{role}.{what}"]))
    left = [counts["rows"], *(int(counts[f"after.{k}"] or 0) for k in range(len(filters)))]
    steps = tuple(Step(name, left[k], left[k + 1], why) for k, (name, _, why) in enumerate(filters))
    kept = frame.filter(passing[-1]) if passing else frame
    kept = kept.select(
        *(_as_id(schema[role], role) if role in ("user", "item") else nw.col(role) for role in names)
    )
    try:
        columns = kept.collect("polars").to_native().to_dict()
    except (pl.exceptions.PolarsError, OverflowError) as error:
        raise EnsuiteError(f"{log.name}: cannot be read: {str(error).splitlines()[0]}") from None
    notes = tuple(
        f"{names[r]}: ids held as {schema[r]} are whole numbers, converted exactly"
        for r in ("user", "item")
        if schema[r].is_float() or schema[r].is_decimal()
    )

    def at(row: int) -> str:
        if passing:
            there = frame.select(passing[-1].alias("kept")).collect("polars").to_native()["kept"]
            row = int(there.fill_null(False).arg_true()[row])
        return log.at(row)

    return Collected(columns, steps, notes, at)


def _id_checks(log: Log, role: str, column: str, dtype: nw.dtypes.DType) -> list[tuple[str, nw.Expr]]:
    """What must not occur in an id column of this type: (what, row-wise expression)."""
    col = nw.col(role)
    null = [("null", col.is_null())]
    if dtype.is_integer():
        return [*null, ("negative", col < 0)]
    if dtype.is_float():
        whole = col.is_null() | col.is_nan() | (col.abs() >= 2.0**53) | (col != col.round(0))
        return [
            *null,
            ("NaN", col.is_nan()),
            ("negative", col < 0),
            ("not a whole number", whole),
        ]
    if dtype.is_decimal():
        return [*null, ("negative", col < 0), ("not a whole number", col != col.round(0))]
    if dtype in (nw.String, nw.Categorical, nw.Enum):
        return [("missing", col.is_null() | col.cast(nw.String).is_in(MISSING))]
    raise EnsuiteError(
        f"{log.name}: column '{column}' holds {dtype}: {role} ids are integers or text; convert it, "
        "or name another column"
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


def _row_filters(
    log: Log, config: PrepareConfig, names: Mapping[str, str], schema: Mapping[str, Any]
) -> list[tuple[str, nw.Expr, str]]:
    """The filters that look at one row alone: (name, expression, what is dropped)."""
    filters = []
    if config.kinds:
        said = ", ".join(config.kinds)
        kinds = nw.col("kind").cast(nw.String).is_in(config.kinds)
        filters.append((f"kind in {said}", kinds, f"events of other kinds than {said}"))
    if config.min_rating is not None:
        if not schema["rating"].is_numeric():
            raise EnsuiteError(
                f"{log.name}: column '{names['rating']}' (rating) holds {schema['rating']}: --min-rating "
                "needs numbers; "
                "name another column with --rating"
            )
        low = f"{config.min_rating:g}"
        rated = nw.col("rating") >= config.min_rating
        filters.append((f"rating >= {low}", rated, f"events rated below {low}, or not rated"))
    return filters
