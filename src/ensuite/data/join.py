"""Several datasets as one, for systems that learn from many domains at once.

Each keeps its own split: what was held out there is held out here. Ids bear the name of their dataset's
folder, so that equal ids of different shops stay different; the item table says in the column `domain` where
an item is from, and has the columns of all (what a domain does not know is missing).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from ensuite import __version__
from ensuite.data.dataset import SECONDS_PER_TICK, Dataset, Split, write_dataset
from ensuite.data.leakage import audit_arrays
from ensuite.data.order import tied
from ensuite.data.report import build_report
from ensuite.errors import EnsuiteError

DOMAIN = "domain"


def join(
    sources: Sequence[Dataset | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Dataset:
    """Write the datasets ``sources`` as one; event columns other than the sessions are left out.

    Times are kept when all have them, in the finest of their units.

    Raises
    ------
    EnsuiteError
        For fewer than two datasets, two of one name, or splits that do not mean the same.
    """
    datasets = [s if isinstance(s, Dataset) else Dataset.open(s) for s in sources]
    names = [dataset.path.resolve().name for dataset in datasets]
    if len(datasets) < 2:
        raise EnsuiteError("one dataset is joined already; name two or more")
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise EnsuiteError(
            f"two folders are called '{double}', and items are told apart by that name; rename one"
        )
    for dataset in datasets:
        if DOMAIN in dataset.items.columns:
            raise EnsuiteError(
                f"{dataset.path}: its items have a column '{DOMAIN}' already; rename it, or, if the dataset "
                "was joined, join those that it was made of"
            )
    split_card = _common_split(datasets, names)
    unit = _common_unit(datasets)
    users, user_at = _ids([d.users for d in datasets], names, "user_id")
    items, item_at = _ids([d.items for d in datasets], names, "item_id")
    events = [d.events("all") for d in datasets]
    lengths = np.concatenate([e.lengths for e in events])
    first = np.cumsum(lengths) - lengths  # of each user, in the order of the datasets
    order = np.argsort(user_at)  # users in the order of their new ids
    offsets = np.concatenate([[0], np.cumsum(lengths[order])])
    rows = np.arange(offsets[-1]) + np.repeat(first[order] - offsets[:-1], lengths[order])
    shift = np.cumsum([0] + [d.n_items for d in datasets])
    user = np.repeat(np.arange(len(lengths)), lengths[order])
    item = np.concatenate([item_at[e.item_idx - 1 + s] + 1 for e, s in zip(events, shift)])[rows]
    time = session = None
    if unit is not None:
        time = np.concatenate([np.asarray(d.time) * _ticks(d, unit) for d in datasets])[rows]
    if all("session" in d.card["columns"] for d in datasets):
        session = np.concatenate([np.asarray(d.column("session")) for d in datasets])[rows]
    ends = [[getattr(d.split, f"{phase}_end") for d in datasets] for phase in ("train", "valid", "test")]
    split = Split(*(np.concatenate(end)[order] for end in ends))
    card: dict[str, Any] = {
        "ensuite_version": __version__,
        "source": {
            "joined": [
                {"name": name, "fingerprint": d.fingerprint, "source": d.card.get("source")}
                for name, d in zip(names, datasets)
            ]
        },
        "time_unit": unit,
        "order": "; ".join(dict.fromkeys(str(d.card.get("order")) for d in datasets)),
        "tie_share": None if time is None else float(np.count_nonzero(tied(user, time)) / len(user)),
        "split": split_card,
        "column_types": {} if session is None else {"session": "integer, the user's sessions from 0"},
    }
    audit_arrays(offsets, time, item, split, card, items.height, str(out), session)
    reports = [d.card.get("report", {}) for d in datasets]
    counts = {
        "duplicates": sum(report.get("duplicates", 0) for report in reports),
        "repeats": sum(report.get("consecutive_repeats", 0) for report in reports),
    }
    notes = [
        f"{name}: {d.n_events:,} events of {d.n_users:,} users with {d.n_items:,} items"
        for name, d in zip(names, datasets)
    ]
    dropped = sorted(
        {c for d in datasets for c in d.card["columns"]} - ({"session"} if session is not None else set())
    )
    if dropped:
        notes.append(f"event columns left out: {', '.join(dropped)}")
    if unit is None and any(d.time is not None for d in datasets):
        notes.append("times left out: not all of the datasets have them")
    card["report"] = build_report(
        [], int(offsets[-1]), counts, offsets, item, time, split, card, notes, session
    )
    return write_dataset(
        out,
        offsets=offsets,
        item_idx=item,
        time=time,
        split=split,
        items=items,
        users=users,
        columns={} if session is None else {"session": session},
        card=card,
        overwrite=overwrite,
    )


def _common_split(datasets: Sequence[Dataset], names: Sequence[str]) -> dict[str, Any]:
    """Return the split's entry in the card: what all have in common, counts added up."""
    meant: dict[str, str] = {}
    for name, dataset in zip(names, datasets):
        said = {key: value for key, value in dataset.card["split"].items() if not isinstance(value, int)}
        meant.setdefault(json.dumps(said, sort_keys=True), name)
    if len(meant) > 1:
        both = "; ".join(f"{name}: {said}" for said, name in meant.items())
        raise EnsuiteError(
            f"the datasets are split in different ways ({both}); prepare them with one --split"
        )
    card = dict(datasets[0].card["split"])
    return card | {
        key: sum(d.card["split"][key] for d in datasets) for key, n in card.items() if isinstance(n, int)
    }


def _common_unit(datasets: Sequence[Dataset]) -> str | None:
    """Return the finest unit of time, or None where a dataset has no times."""
    units = [d.card["time_unit"] for d in datasets]
    if not all(units):
        return None
    finest = min(units, key=SECONDS_PER_TICK.__getitem__)
    if "cuts" in datasets[0].card["split"] and len(set(units)) > 1:
        raise EnsuiteError(
            f"the cuts of a global-time split are in different units ({', '.join(units)}); prepare the logs "
            "with times of one unit"
        )
    return finest


def _ticks(dataset: Dataset, unit: str) -> int:
    """Return how many ticks of ``unit`` one of the dataset's is."""
    return round(dataset.seconds_per_tick / SECONDS_PER_TICK[unit])


def _ids(tables: Sequence[pl.DataFrame], names: Sequence[str], key: str) -> tuple[pl.DataFrame, np.ndarray]:
    """Return one table in ascending order of the new ids, and where in it each old row, table by table,
    is."""
    mixed = {
        column
        for table in tables
        for column in table.columns
        if len({t.schema[column] for t in tables if column in t.columns}) > 1
    }
    marked = []
    for name, table in zip(names, tables):
        ids = (pl.lit(f"{name}:") + pl.col(key).cast(pl.String)).alias(key)
        texts = [
            pl.Series(c, [_words(v) for v in table[c]], pl.String)
            for c in table.columns
            if c in mixed - {key}
        ]
        marked.append(table.with_columns(ids, pl.lit(name).alias(DOMAIN), *texts))
    joined = pl.concat(marked, how="diagonal")
    order = joined[key].arg_sort().to_numpy()
    at = np.empty(len(order), np.int64)
    at[order] = np.arange(len(order))
    return joined[order], at


def _words(value: Any) -> str | None:
    """Return what a cell of a column says that is of different types in different tables."""
    if value is None:
        return None
    if isinstance(value, pl.Series | list):
        return ", ".join(dict.fromkeys(filter(None, map(_words, value))))
    return str(value)
