"""From a log to a dataset folder: read, check, filter, order, number, split, audit, write."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from ensuite import __version__
from ensuite.config import config_dict
from ensuite.data.builtin import read_public
from ensuite.data.catalogue import PUBLIC
from ensuite.data.columns import Role, assign_roles
from ensuite.data.dataset import Dataset, write_dataset
from ensuite.data.filters import Steps, apply_filters, nothing_left
from ensuite.data.ids import compact
from ensuite.data.leakage import audit_arrays
from ensuite.data.numbering import number
from ensuite.data.options import PrepareConfig
from ensuite.data.order import tied
from ensuite.data.readers import Log, file_hashes, read_files
from ensuite.data.report import build_report
from ensuite.data.sessions import apply_sessions, within_users
from ensuite.data.side import EventColumn, event_columns, side_table
from ensuite.data.split import build_split
from ensuite.data.tables import collect
from ensuite.errors import EnsuiteError

__all__ = ["PrepareConfig", "Progress", "prepare"]


@dataclass(frozen=True)
class Progress:
    """What `prepare` is doing: ``stage`` in words; ``roles`` and ``sample`` once, when the columns are
    known."""

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
        Name of a public dataset (``"ml-small"``), path or paths (globs too), or a table: pandas, Polars,
        PyArrow, DuckDB relation, PySpark.
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
    roles = assign_roles(log.name, names, config, log.defaults)
    if progress is not None:
        sample = (
            log.frame.select(*dict.fromkeys(r.column for r in roles)).head(3).collect("polars").to_native()
        )
        say(Progress("reading", tuple(roles), sample))
    collected = collect(log, roles, config)
    notes = [*log.notes, *collected.notes]
    if log.format not in ("sequences", "pairs") and not {"time", "order"} & {r.role for r in roles}:
        notes.append(
            "no column looks like a time: the rows are taken to be in the order in which things happened"
        )
    say(Progress("ordering"))
    numbered = number(log, roles, collected, config)
    steps = Steps(collected.steps)
    del collected
    say(Progress("filtering"))
    events, counts = apply_filters(numbered.events, numbered.columns, numbered.unit, config, steps)
    if config.by_session and len(events):
        events = apply_sessions(events, numbered.columns.get("session"), numbered.unit, config, steps)
    if not len(events):
        raise nothing_left(log.name, steps)

    say(Progress("splitting"))
    user, users_left = compact(events.user, len(numbered.user_ids))
    item, items_left = compact(events.item, len(numbered.item_ids))
    offsets = np.zeros(len(users_left) + 1, np.int64)
    np.cumsum(np.bincount(user, minlength=len(users_left)), out=offsets[1:])
    item = item + np.int32(1)
    unit = numbered.unit
    session = None if events.session is None else within_users(offsets, events.session)
    split, said_split = build_split(offsets, events.time, unit, config, session)
    items, notes_items = side_table("items", numbered.item_ids.gather(items_left), config.items, log.items)
    users, notes_users = side_table("users", numbered.user_ids.gather(users_left), config.users, log.users)
    kept = event_columns(numbered.columns, events.row)
    if session is not None:
        kept["session"] = EventColumn(session, None, "integer, the user's sessions from 0")
    card = {
        "ensuite_version": __version__,
        "source": numbered.origin
        | {"columns": {r.role: {"column": r.column, "how": r.how} for r in roles}}
        | {
            "tables": [
                entry for path in (config.items, config.users) if path for entry in file_hashes([path])
            ]
        },
        "time_unit": unit,
        "prepare": _settings(config),
        "order": _say_order(config, roles),
        "tie_share": float(np.count_nonzero(tied(user, events.time)) / len(user)) if unit else None,
        "split": said_split,
        "column_types": {name: column.kind for name, column in kept.items()},
    }
    audit_arrays(offsets, events.time, item, split, card, items.height, str(out), session)
    notes += [*numbered.notes, *notes_items, *notes_users]
    card["report"] = build_report(
        steps.done, numbered.n_read, counts, offsets, item, events.time, split, card, notes, session
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
        if (
            len(paths) == 1
            and paths[0] in PUBLIC
            and (config.archive is not None or not Path(paths[0]).is_file())
        ):
            return read_public(paths[0], config)
        if config.archive is not None:
            raise EnsuiteError(f"--from belongs to a public dataset ({', '.join(PUBLIC)}), not to {paths[0]}")
        near = difflib.get_close_matches(paths[0], PUBLIC, n=1, cutoff=0.75)
        if len(paths) == 1 and near and not Path(paths[0]).exists():
            raise EnsuiteError(f"{paths[0]}: no such file; did you mean the public dataset '{near[0]}'?")
        return read_files(paths, config)
    try:
        frame = nw.from_native(source)
    except TypeError:
        raise EnsuiteError(
            f"a {type(source).__name__} is no log: give a path, the name of a public dataset, or a "
            "pandas, Polars, PyArrow, DuckDB or PySpark table"
        ) from None
    lazy = frame.lazy("polars") if isinstance(frame, nw.DataFrame) else frame
    return Log(lazy, "table")


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


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """The options that differ from their defaults, without the paths of one machine."""
    plain = config_dict(PrepareConfig())
    values = {k: v for k, v in config_dict(config).items() if v != plain[k]}
    return values | {k: Path(values[k]).name for k in ("archive", "items", "users") if k in values}


def _say_order(config: PrepareConfig, roles: Sequence[Role]) -> str:
    there = {r.role: r.column for r in roles}
    by = [there[role] for role in ("time", "order") if role in there]
    if not by and config.ties == "source":
        return "order of the source"
    ties = f"ties shuffled with seed {config.seed}" if config.ties == "shuffle" else "ties in source order"
    return f"stable by {', '.join(['user', *by])}; {ties}"
