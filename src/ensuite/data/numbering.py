"""The log as dense codes, in order: parsed times, numbered users and items, one stable sort."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ensuite.data.columns import Role
from ensuite.data.filters import Steps, nothing_left
from ensuite.data.ids import encode
from ensuite.data.options import PrepareConfig
from ensuite.data.order import Ordered, sort_order
from ensuite.data.readers import Log
from ensuite.data.side import event_columns
from ensuite.data.tables import Collected
from ensuite.data.times import to_ticks
from ensuite.errors import EnsuiteError


@dataclass(frozen=True)
class Numbered:
    """The log as dense codes, in order."""

    events: Ordered
    user_ids: pl.Series
    item_ids: pl.Series
    unit: str | None
    columns: dict[str, pl.Series]
    """Optional event columns, in the order of the source: `events.row` says where each event is in them."""
    origin: dict[str, Any]
    n_read: int
    notes: tuple[str, ...]


def number(log: Log, roles: Sequence[Role], collected: Collected, config: PrepareConfig) -> Numbered:
    """Parse times, number users and items, sort. Columns are let go of one by one: memory is what limits a
    large log."""
    columns = collected.columns
    if not len(columns["user"]):
        raise nothing_left(log.name, Steps(collected.steps))
    n_read = collected.steps[0].before if collected.steps else len(columns["user"])
    ticks = unit = None
    notes: tuple[str, ...] = ()
    if "time" in columns:
        column = next(r.column for r in roles if r.role == "time")
        ticks, unit, said = to_ticks(columns.pop("time"), column, collected.at, config.time_unit)
        notes = (f"{column}: {said}",)
    order = _order_column(columns.pop("order", None), collected.at)
    user, user_ids = encode(columns.pop("user"))
    item, item_ids = encode(columns.pop("item"))
    origin: dict[str, Any] = {"name": log.name, "format": log.format}
    if log.files:
        origin["files"] = log.fingerprint()
    else:
        origin["content"] = _hash_events([user_ids, item_ids], [user, item, ticks, order], columns)
    by = sort_order(user, ticks, order, config.seed if config.ties == "shuffle" else None)
    row = None if not columns else np.arange(len(user)) if by is None else by
    if by is not None:
        user, item, ticks = user[by], item[by], None if ticks is None else ticks[by]
    return Numbered(Ordered(user, item, ticks, row), user_ids, item_ids, unit, columns, origin, n_read, notes)


def _order_column(column: pl.Series | None, at: Callable[[int], str]) -> np.ndarray | None:
    if column is None:
        return None
    if not column.dtype.is_integer() or column.null_count():
        row = int(column.is_null().arg_true()[0]) if column.null_count() else 0
        raise EnsuiteError(
            f"{at(row)}: the order column holds {column[row]!r} ({column.dtype}): whole numbers are "
            "needed; name another with --order"
        )
    return column.cast(pl.Int64).to_numpy()


def _hash_events(
    ids: Sequence[pl.Series], codes: Sequence[np.ndarray | None], columns: Mapping[str, pl.Series]
) -> str:
    """One hash of a table's content, the same whatever engine held it: what a file's hash is for files."""
    kept = event_columns(columns, None)
    names = sorted(kept)
    digest = hashlib.sha256(" ".join(names).encode())
    for texts in (*ids, *(kept[name].labels for name in names)):
        if texts is not None:
            digest.update("\0".join(texts.cast(pl.String)).encode())
    for values in (*codes, *(kept[name].values for name in names)):
        if values is not None:
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
