"""From a log to a dataset folder: read, check, filter, order, number, split, audit, write."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from ensuite import __version__
from ensuite.config import config_dict
from ensuite.data import filters
from ensuite.data.builtin import PUBLIC, read_public
from ensuite.data.columns import Role, assign_roles
from ensuite.data.dataset import Dataset, write_dataset
from ensuite.data.ids import compact, encode
from ensuite.data.leakage import audit_arrays
from ensuite.data.options import PrepareConfig
from ensuite.data.order import Ordered, sort_order, tied
from ensuite.data.readers import Log, read_files
from ensuite.data.report import build_report
from ensuite.data.side import event_columns, side_table
from ensuite.data.split import build_split
from ensuite.data.tables import collect
from ensuite.data.times import parse_bound, to_ticks
from ensuite.errors import EnsuiteError

__all__ = ["PrepareConfig", "Progress", "prepare"]


@dataclass(frozen=True)
class Progress:
    """What `prepare` is doing: ``stage`` in words; ``roles`` and ``sample`` once, when the columns are known."""

    stage: str
    roles: tuple[Role, ...] = ()
    sample: pl.DataFrame | None = None


def prepare(
    source: Any,
    *,
    out: str | os.PathLike[str],
    config: PrepareConfig | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Dataset:
    """Make a dataset folder of a log, and open it.

    Parameters
    ----------
    source
        Name of a public dataset (``"ml-small"``), path or paths (globs too), or a table: pandas, Polars, PyArrow, DuckDB
        relation, PySpark.
    out
        Folder to write; it appears complete or not at all.
    config
        Columns, filters, order, split; the default keeps every event and leaves one out.
    progress
        Called as work goes on.

    Raises
    ------
    EnsuiteError
        For anything wrong with the log; the message names file, row, column, value and remedy.

    Examples
    --------
    >>> import polars as pl, tempfile
    >>> log = pl.DataFrame({"user": [7, 7, 7], "item": [30, 10, 20], "time": [1, 2, 3]})
    >>> prepare(log, out=tempfile.mkdtemp() + "/own").items["item_id"].to_list()
    [10, 20, 30]
    """
    config = config or PrepareConfig()
    say = progress or (lambda _: None)
    _check_out(Path(out), overwrite)
    say(Progress("reading"))
    log = open_source(source, config)
    if log.defaults:
        config = _with_defaults(config, log.defaults)
    names = log.frame.collect_schema().names()
    roles = assign_roles(log.name, names, config)
    if progress is not None:
        sample = (
            log.frame.select(*dict.fromkeys(r.column for r in roles)).head(3).collect("polars").to_native()
        )
        say(Progress("reading", tuple(roles), sample))
    collected = collect(log, roles, config)
    columns = {name: collected.columns[name] for name in collected.columns.columns}
    if log.files:
        origin: dict[str, Any] = {"name": log.name, "format": log.format, "files": log.fingerprint()}
    else:
        origin = {"name": log.name, "format": log.format, "content": _hash_columns(columns)}
    steps = filters.Steps(collected.steps)
    notes = [*log.notes, *collected.notes]
    n_read = steps.done[0].before if steps.done else collected.columns.height
    del collected
    if not len(columns["user"]):
        raise _nothing_left(log.name, steps)

    say(Progress("ordering"))
    where = log.at if not steps.done else partial(_filtered_row, log)
    unit = None
    ticks = None
    if "time" in columns:
        column = next(r.column for r in roles if r.role == "time")
        ticks, unit, said = to_ticks(columns.pop("time"), column, where, config.time_unit)
        notes.append(f"{column}: {said}")
    order = _order_column(columns.pop("order", None), log)
    user, user_ids = encode(columns.pop("user"))
    item, item_ids = encode(columns.pop("item"))
    by = sort_order(user, ticks, order, config.seed if config.ties == "shuffle" else None)
    optional = {name: columns[name] for name in columns}
    row = None if not optional else np.arange(len(user)) if by is None else by
    if by is not None:
        user, item, ticks = user[by], item[by], None if ticks is None else ticks[by]
    events = Ordered(user, item, ticks, row)
    del user, item, ticks, by, row

    say(Progress("filtering"))
    events, counts = _filter(events, optional, config, unit, steps)
    if not len(events):
        raise _nothing_left(log.name, steps)

    say(Progress("splitting"))
    user, users_left = compact(events.user, len(user_ids))
    item, items_left = compact(events.item, len(item_ids))
    user_ids, item_ids = user_ids.gather(users_left), item_ids.gather(items_left)
    offsets = np.zeros(len(user_ids) + 1, np.int64)
    np.cumsum(np.bincount(user, minlength=len(user_ids)), out=offsets[1:])
    item = item + np.int32(1)
    ties = tied(user, events.time)
    split, said_split = build_split(offsets, events.time, unit, config)
    items, notes_items = side_table("items", item_ids, config.items, log.items)
    users, notes_users = side_table("users", user_ids, config.users, log.users)
    kept = event_columns(optional, events.row)
    card = {
        "ensuite_version": __version__,
        "source": origin | {"columns": {r.role: {"column": r.column, "how": r.how} for r in roles}},
        "time_unit": unit,
        "prepare": _settings(config),
        "order": _say_order(config, roles),
        "tie_share": float(np.count_nonzero(ties) / len(ties)) if unit else None,
        "split": said_split,
        "column_types": {name: column.kind for name, column in kept.items()},
    }
    audit_arrays(offsets, events.time, item, split, card, len(item_ids), str(out))
    card["report"] = build_report(
        n_read,
        steps.done,
        counts,
        offsets,
        item,
        events.time,
        unit,
        split,
        card,
        [*notes, *notes_items, *notes_users],
    )
    say(Progress("writing"))
    return write_dataset(
        out,
        offsets=offsets,
        item_idx=item,
        time=events.time,
        split=split,
        items=items,
        users=users,
        columns={name: column.values for name, column in kept.items()},
        labels={name: column.labels for name, column in kept.items() if column.labels is not None},
        card=card,
        overwrite=overwrite,
    )


def open_source(source: Any, config: PrepareConfig) -> Log:
    """Return a log of whatever ``source`` is: a public name, paths, or a table of any engine."""
    if isinstance(source, str | os.PathLike):
        source = [source]
    if isinstance(source, Sequence) and all(isinstance(s, str | os.PathLike) for s in source):
        paths = [str(s) for s in source]
        if not paths:
            raise EnsuiteError(
                "no log was named; give a file, or the name of a public dataset: " + ", ".join(PUBLIC)
            )
        if len(paths) == 1 and not Path(paths[0]).exists() and paths[0] in PUBLIC:
            return read_public(paths[0], config)
        if config.archive is not None:
            raise EnsuiteError(f"--from belongs to a public dataset ({', '.join(PUBLIC)}), not to {paths[0]}")
        return read_files(paths, config)
    try:
        frame = nw.from_native(source)
    except TypeError:
        raise EnsuiteError(
            f"a {type(source).__name__} is no log: give a path, the name of a public dataset, or a pandas, Polars, PyArrow, DuckDB or "
            "PySpark table"
        ) from None
    lazy = frame.lazy("polars") if isinstance(frame, nw.DataFrame) else frame
    return Log(lazy, "table")


def _filter(
    events: Ordered,
    optional: Mapping[str, pl.Series],
    config: PrepareConfig,
    unit: str | None,
    steps: filters.Steps,
) -> tuple[Ordered, dict[str, int]]:
    """Apply the filters on time and neighbours, in the order that the documentation gives."""
    for flag, value in (("since", config.since), ("until", config.until)):
        if value is None:
            continue
        if events.time is None or unit is None:
            raise EnsuiteError(
                f"--{flag} needs times, and this log holds an order only; name the column with --time"
            )
        bound = parse_bound(value, unit, flag)
        keep = events.time >= bound if flag == "since" else events.time < bound
        events = steps.apply(
            events,
            keep,
            f"{flag} {value}",
            f"events {'before' if flag == 'since' else 'at or after'} {value}",
        )

    def extra(rows: np.ndarray) -> pl.DataFrame:
        return pl.DataFrame({f"x.{name}": column.gather(rows) for name, column in optional.items()})

    same = filters.duplicates(events, extra if optional else None)
    counts = {"duplicates": int(np.count_nonzero(same))}
    if config.drop_duplicates:
        events = steps.apply(
            events, ~same, "duplicates", "events equal to an earlier one in user, item, time and kept columns"
        )
    again = filters.repeats(events.user, events.item)
    counts["repeats"] = int(np.count_nonzero(again))
    if config.drop_repeats:
        events = steps.apply(
            events, ~again, "consecutive repeats", "events with the same item as the user's event before"
        )
    if config.min_user > 1 or config.min_item > 1:
        keep, rounds = filters.frequent(
            events.user, events.item, config.min_user, config.min_item, one_pass=config.one_pass
        )
        how = "one pass" if config.one_pass else f"fixed point after {rounds} rounds"
        wanted = f"users >= {config.min_user}, items >= {config.min_item}"
        events = steps.apply(events, keep, wanted, f"events of users or items with fewer ({how})")
    if config.last:
        keep = filters.last_events(events.user, config.last)
        events = steps.apply(
            events, keep, f"last {config.last}", f"all but the last {config.last} events of each user"
        )
    return events, counts


def _check_out(out: Path, overwrite: bool) -> None:
    """Refuse early what `write_dataset` would refuse after all the work."""
    if out.exists():
        dataset = (out / "card.json").exists()
        if not dataset:
            raise EnsuiteError(f"{out}: exists and is no dataset; choose another --out")
        if not overwrite:
            raise EnsuiteError(f"{out}: exists already; choose another --out, or --overwrite")


def _with_defaults(config: PrepareConfig, defaults: Mapping[str, Any]) -> PrepareConfig:
    """Fill in what a public dataset knows of its columns, where the caller said nothing."""
    plain = PrepareConfig()
    values = config_dict(config)
    return PrepareConfig(**(values | {k: v for k, v in defaults.items() if values[k] == getattr(plain, k)}))


def _order_column(column: pl.Series | None, log: Log) -> np.ndarray | None:
    if column is None:
        return None
    if not column.dtype.is_integer() or column.null_count():
        row = int(column.is_null().arg_max() or 0) if column.null_count() else 0
        raise EnsuiteError(
            f"{log.at(row)}: the order column holds {column[row]!r} ({column.dtype}): whole numbers are needed; name another with --order"
        )
    return column.cast(pl.Int64).to_numpy()


def _filtered_row(log: Log, row: int) -> str:
    return f"{log.name}: row {row + 1:,} of those kept by the filters"


def _nothing_left(name: str, steps: filters.Steps) -> EnsuiteError:
    said = "; ".join(f"{s.name}: {s.before:,} to {s.after:,} events" for s in steps.done)
    return EnsuiteError(f"{name}: the filters leave no event ({said}); loosen them")


def _hash_columns(columns: Mapping[str, pl.Series]) -> str:
    """One hash of a table's content, the same whatever engine held it."""
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(f"{name}:{columns[name].dtype}".encode())
        column = columns[name]
        if column.dtype.is_numeric():
            digest.update(np.ascontiguousarray(column.to_numpy()).data)
        else:
            digest.update(column.hash(seed=0).to_numpy().data)
    return digest.hexdigest()


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """The options that differ from their defaults, without the paths of one machine."""
    plain = config_dict(PrepareConfig())
    values = {k: v for k, v in config_dict(config).items() if v != plain[k]}
    return values | {k: Path(values[k]).name for k in ("archive", "items", "users") if k in values}


def _say_order(config: PrepareConfig, roles: Sequence[Role]) -> str:
    there = {r.role: r.column for r in roles}
    by = [there[role] for role in ("time", "order") if role in there]
    ties = f"ties shuffled with seed {config.seed}" if config.ties == "shuffle" else "ties in source order"
    return f"stable by user, {', '.join(by)}; {ties}" if by else f"order of the source; {ties}"
