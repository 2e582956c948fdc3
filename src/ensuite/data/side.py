"""What is kept beside user, item and time: item and user tables, and the optional event columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from ensuite.data.columns import guess
from ensuite.data.readers import read_table, title_column
from ensuite.errors import EnsuiteError


@dataclass(frozen=True)
class EventColumn:
    """An optional event column as stored: numbers, or codes of text with their labels (-1: missing)."""

    values: np.ndarray  # [E]
    labels: pl.Series | None
    kind: str


def side_table(
    role: str, ids: pl.Series, path: str | None, known: pl.DataFrame | None
) -> tuple[pl.DataFrame, list[str]]:
    """Return the table of the ids that occur, in their order, and what is to be said of it.

    Parameters
    ----------
    role
        "items" or "users".
    ids
        Ascending ids of the log.
    path
        The file that --items or --users named; without it ``known``, the table that came with the log, is
        taken.
    """
    key = f"{role[:-1]}_id"
    table = ids.alias(key).to_frame()
    extra = read_table(path) if path is not None else known
    if extra is None:
        return table, []
    where = path or f"the source's {role} table"
    column = guess(role[:-1], extra.columns) or ("id" if "id" in extra.columns else None)
    if column is None:
        raise EnsuiteError(
            f"{where}: no column looks like the {key}; rename it to {key} (columns: "
            f"{', '.join(extra.columns)})"
        )
    if column != key and key in extra.columns:
        extra = extra.drop(key)
    extra = extra.rename({column: key})
    if role == "items":
        extra = title_column(extra)
    extra = extra.filter(pl.col(key).is_not_null())
    try:
        extra = extra.with_columns(pl.col(key).cast(pl.String).cast(table.schema[key]))
    except pl.exceptions.PolarsError:
        raise EnsuiteError(
            f"{where}: column '{column}' ({extra.schema[key]}) does not hold the log's ids "
            f"({table.schema[key]}, such as {ids[0]!r})"
        ) from None
    once = extra.unique(key, keep="first", maintain_order=True)
    joined = table.join(
        once.with_columns(pl.lit(True).alias("__there")), on=key, how="left", maintain_order="left"
    )
    missing = joined["__there"].null_count()
    notes = []
    if once.height < extra.height:
        notes.append(
            f"{role}: {extra.height - once.height:,} rows of the {role} table repeat an id; the first "
            "was kept"
        )
    if missing == len(ids):
        raise EnsuiteError(
            f"{where}: none of the log's {len(ids):,} {role} is in column '{column}' (the log's ids: "
            f"{ids[0]!r}, ...)"
        )
    if missing:
        notes.append(f"{role}: {missing:,} of {len(ids):,} have no row in the {role} table")
    return joined.drop("__there"), notes


def event_columns(columns: Mapping[str, pl.Series], rows: np.ndarray | None) -> dict[str, EventColumn]:
    """Return the optional columns in the order of the events."""
    return {
        name: event_column(name, column if rows is None else column.gather(rows))
        for name, column in columns.items()
    }


def event_column(name: str, column: pl.Series) -> EventColumn:
    """Return one optional column as numbers: text as codes, times in microseconds, integers with gaps as
    floats."""
    dtype = column.dtype
    if not re.fullmatch(r"\w[\w .:-]*", name):
        raise EnsuiteError(
            f"--keep {name}: the name becomes a file's name: rename the column to letters, digits and _"
        )
    if dtype == pl.String or dtype in (pl.Categorical, pl.Enum):
        text = column.cast(pl.String)
        labels = text.drop_nulls().unique().sort()
        rows = pl.DataFrame({"value": labels, "code": np.arange(len(labels), dtype=np.int32)})
        codes = (
            text.alias("value").to_frame().join(rows, on="value", how="left", maintain_order="left")["code"]
        )
        return EventColumn(codes.fill_null(-1).to_numpy(), labels, "text")
    if dtype == pl.Boolean and not column.null_count():
        return EventColumn(column.cast(pl.Int8).to_numpy(), None, "bool")
    if dtype.is_temporal():
        if dtype == pl.Time or dtype == pl.Duration:
            raise EnsuiteError(f"--keep {name}: a column of {dtype} cannot be kept; convert it to a number")
        column = column.cast(pl.Datetime("us")).to_physical()
        dtype = column.dtype
    if dtype.is_decimal() or (dtype == pl.Boolean) or (dtype.is_integer() and column.null_count()):
        return EventColumn(
            column.cast(pl.Float64).fill_null(float("nan")).to_numpy(), None, "number, NaN where missing"
        )
    if dtype.is_integer():
        return EventColumn(column.to_numpy(), None, "integer")
    if dtype.is_float():
        return EventColumn(column.fill_null(float("nan")).to_numpy(), None, "number")
    raise EnsuiteError(
        f"--keep {name}: a column of {dtype} cannot be kept with the events: numbers, text and times can"
    )
