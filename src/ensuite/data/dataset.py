"""The dataset folder: events of every user in order, stored ragged, opened memory-mapped.

    DIR/
      card.json            what the numbers mean: source, filters, order, ties, split, checksums
      offsets.npy          [U + 1] int64   events of user u are rows offsets[u]:offsets[u + 1] of each column
      item_idx.npy         [E]     int32   1..V; 0 never occurs (it is padding in batches)
      time.npy             [E]     int64   in the card's `time_unit`; absent when the log holds an order only
      columns/NAME.npy     [E]             optional columns (kind, rating, session, any context); of text
                                           the codes, and in columns/NAME.labels.parquet what they stand for
      train_end.npy, valid_end.npy, test_end.npy    [U] int64   the split, see `Split`
      items.parquet        [V]     `item_id` (row i is item_idx i + 1) and the columns of the item table
      users.parquet        [U]     `user_id` and the columns of the user table

Item and user rows are in ascending order of their ids, so that the same log gives the same folder whatever
engine read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from ensuite.data.integrity import card_checksum, check_files, remember, sha256, size_and_time
from ensuite.data.stated import Stated
from ensuite.errors import EnsuiteError, did_you_mean

FORMAT_VERSION = 1
SECONDS_PER_TICK = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}

Phase = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Events:
    """Ragged events: those of user u are rows ``offsets[u]:ends[u]`` of ``item_idx`` and ``time``.

    ``ends`` may stop before the next user's offset: a view of the training part shares the columns of the
    whole log.
    """

    offsets: np.ndarray  # [U] int64, first row of each user
    ends: np.ndarray  # [U] int64, one past the last row of each user
    item_idx: np.ndarray  # [E] int32
    time: np.ndarray | None  # [E] int64, in ticks
    seconds_per_tick: float
    n_items: int
    session: np.ndarray | None = None  # [E], constant within a session; None when the log has no sessions
    stated: Stated | None = None  # preferences, for models that read them

    @property
    def lengths(self) -> np.ndarray:
        """Number of events of each user: [U] int64."""
        return self.ends - self.offsets

    def rows(self) -> np.ndarray:
        """Rows of all events of this view, user by user: [N] int64."""
        lengths = self.lengths
        before = np.cumsum(lengths) - lengths
        return np.arange(lengths.sum()) + np.repeat(self.offsets - before, lengths)


@dataclass(frozen=True)
class Cases:
    """What is evaluated: case c has the history ``history_start[c]:history_end[c]`` and the targets
    ``history_end[c]:target_end[c]``, all rows of the event columns. Every case has at least one of each; a
    user has one case, or of a sessions split one for each session held out."""

    user: np.ndarray  # [C] int64, user rows
    history_start: np.ndarray  # [C] int64
    history_end: np.ndarray  # [C] int64, also the first target's row
    target_end: np.ndarray  # [C] int64

    def __len__(self) -> int:
        return len(self.user)

    def take(self, which: np.ndarray) -> Cases:
        """Return the cases at positions ``which``."""
        return Cases(
            self.user[which], self.history_start[which], self.history_end[which], self.target_end[which]
        )


@dataclass(frozen=True)
class Split:
    """Three integers per user, counted within the user's own row: [U] int64 each, 0 <= train <= valid <= test
    <= length.

    Events [0, train_end) are trained on; [train_end, valid_end) are asked for in validation, given those
    before; [valid_end, test_end) in test. A user with train_end = valid_end = test_end is trained on only. In
    an ``unseen-users`` split a held-out user has train_end = 0, its events all in one phase: the last is the
    target. In a ``sessions`` split all three lie between sessions.
    """

    train_end: np.ndarray
    valid_end: np.ndarray
    test_end: np.ndarray


class Dataset:
    """A prepared dataset folder, read-only; columns are memory maps, tables are read when first asked for.

    Make one with `ensuite prepare` or `ensuite.prepare`, open it with ``Dataset.open(path)``.
    """

    def __init__(self, path: Path, card: dict[str, Any]):
        self.path = path
        self.card = card
        self.n_users: int = card["n_users"]
        self.n_items: int = card["n_items"]
        self.n_events: int = card["n_events"]

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Dataset:
        """Open a dataset folder in milliseconds, whatever its size.

        Sizes of all files are checked always. Checksums are computed when a file's size or modification time
        is not what it was when they were last found right (so once after a copy), and always with
        ``verify=True``.

        Raises
        ------
        EnsuiteError
            When the folder is none of ours, of another format version, truncated or edited: the file is
            named.
        """
        path = Path(path)
        card = _read_card(path)
        check_files(path, card["files"], verify)
        return cls(path, card)

    @property
    def fingerprint(self) -> str:
        """One hash over all files of the folder: equal for equal data, split and item order."""
        return self.card["fingerprint"]

    @cached_property
    def offsets(self) -> np.ndarray:
        return self._column("offsets")

    @cached_property
    def item_idx(self) -> np.ndarray:
        return self._column("item_idx")

    @cached_property
    def time(self) -> np.ndarray | None:
        """Event times in ticks, or None when the log holds an order only."""
        return self._column("time") if self.card["time_unit"] else None

    @property
    def seconds_per_tick(self) -> float:
        return SECONDS_PER_TICK[self.card["time_unit"] or "s"]

    @cached_property
    def split(self) -> Split:
        return Split(self._column("train_end"), self._column("valid_end"), self._column("test_end"))

    def column(self, name: str) -> np.ndarray:
        """Return the optional event column ``name``: [E]."""
        known = self.card["columns"]
        if name not in known:
            raise EnsuiteError(f"{self.path}: no event column '{name}'; {did_you_mean(name, known)}")
        return self._column(f"columns/{name}")

    def labels(self, name: str) -> pl.Series | None:
        """Return the texts that the codes of a text column stand for (code -1: missing); None for a column of
        numbers."""
        file = f"columns/{name}.labels.parquet"
        return pl.read_parquet(self.path / file)["label"] if file in self.card["files"] else None

    @cached_property
    def items(self) -> pl.DataFrame:
        """The item table: row i is item_idx i + 1."""
        return pl.read_parquet(self.path / "items.parquet")

    @cached_property
    def users(self) -> pl.DataFrame:
        """The user table: row u is user u."""
        return pl.read_parquet(self.path / "users.parquet")

    def events(self, phase: Phase | Literal["all"] = "all") -> Events:
        """Return what may be read when predicting ``phase``: for "train" the training part, for "valid"
        likewise (what is fitted is fitted on training events only), for "all" the whole log."""
        starts = np.asarray(self.offsets[:-1])
        ends = np.asarray(self.offsets[1:]) if phase == "all" else starts + self.split.train_end
        # Plain views of the memory maps: the same pages, without the cost that each memmap slice has.
        time = None if self.time is None else np.asarray(self.time)
        session = np.asarray(self.column("session")) if "session" in self.card["columns"] else None
        return Events(
            starts, ends, np.asarray(self.item_idx), time, self.seconds_per_tick, self.n_items, session
        )

    @property
    def exclude(self) -> Literal["seen", "none"]:
        """Which items a ranking leaves out: those of the user's history, or none where a repeat is a right
        answer too (a sessions split)."""
        return "none" if self.card["split"]["kind"] == "sessions" else "seen"

    def cases(self, phase: Literal["valid", "test"]) -> Cases:
        """Return the evaluation cases of a phase, in user order.

        A user whose target comes first of all their events has no history to predict from: such cases are
        left out, and counted in the card as cold users.
        """
        starts = np.asarray(self.offsets[:-1])
        begin, end = {
            "valid": (self.split.train_end, self.split.valid_end),
            "test": (self.split.valid_end, self.split.test_end),
        }[phase]
        begin, end = starts + begin, starts + end
        split = self.card["split"]
        if split["kind"] == "unseen-users":
            begin = np.where(end > begin, end - 1, begin)
        elif split["targets"] == "session":
            return self._session_cases(begin, end)
        elif split["targets"] == "next":
            end = np.minimum(end, begin + 1)
        user = np.flatnonzero((end > begin) & (begin > starts))
        return Cases(user, starts[user], begin[user], end[user])

    def _session_cases(self, begin: np.ndarray, end: np.ndarray) -> Cases:
        """Return a case for each session that begins in rows ``begin[u]:end[u]``, its history all before."""
        starts = np.asarray(self.offsets[:-1])
        session = np.asarray(self.column("session"))
        user = np.repeat(np.arange(self.n_users), end - begin)
        before = np.cumsum(end - begin) - (end - begin)
        rows = np.arange(len(user)) + (begin - before)[user]
        first = (rows > starts[user]) & (session[rows] != session[np.maximum(rows - 1, 0)])
        user, row = user[first], rows[first]
        stop = np.append(row[1:], 0)
        last = np.append(user[1:] != user[:-1], True) if len(user) else np.zeros(0, bool)
        stop[last] = end[user[last]]
        return Cases(user, starts[user], row, stop)

    def _column(self, name: str) -> np.ndarray:
        path = self.path / f"{name}.npy"
        if self.card["files"][f"{name}.npy"]["bytes"] <= 128:  # an empty array cannot be mapped
            return np.load(path)
        return np.load(path, mmap_mode="r")

    def __repr__(self) -> str:
        return (
            f"Dataset({str(self.path)!r}: {self.n_users:,} users, {self.n_items:,} items, "
            f"{self.n_events:,} events)"
        )


def write_dataset(
    out: str | os.PathLike[str],
    *,
    offsets: np.ndarray,
    item_idx: np.ndarray,
    time: np.ndarray | None,
    split: Split,
    items: pl.DataFrame,
    users: pl.DataFrame,
    columns: Mapping[str, np.ndarray],
    card: Mapping[str, Any],
    labels: Mapping[str, pl.Series] | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Write a dataset folder aside and rename it into place: an interrupted write leaves nothing under
    ``out``.

    ``card`` must hold `time_unit` ("s", "ms", "us", "ns" or None) and `split` (with `kind` and `targets`);
    counts, checksums and the fingerprint are added here.

    Raises
    ------
    EnsuiteError
        When ``out`` exists and is not to be overwritten, is no dataset, or the disk is full (nothing is left
        behind).
    """
    out = Path(out)
    if out.exists() and not (overwrite and (out / "card.json").exists()):
        if (out / "card.json").exists():
            raise EnsuiteError(f"{out}: exists already; choose another --out, or --overwrite")
        raise EnsuiteError(f"{out}: exists and is no dataset; choose another --out")
    arrays: dict[str, np.ndarray] = {
        "offsets": np.asarray(offsets, np.int64),
        "item_idx": np.asarray(item_idx, np.int32),
        "train_end": np.asarray(split.train_end, np.int64),
        "valid_end": np.asarray(split.valid_end, np.int64),
        "test_end": np.asarray(split.test_end, np.int64),
    }
    if time is not None:
        arrays["time"] = np.asarray(time, np.int64)
    arrays |= {f"columns/{name}": values for name, values in columns.items()}
    _remove_stale(out)
    aside = out.with_name(f".{out.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
    try:
        (aside / "columns").mkdir(parents=True)
        for name, values in arrays.items():
            np.save(aside / f"{name}.npy", values, allow_pickle=False)
        items.write_parquet(aside / "items.parquet")
        users.write_parquet(aside / "users.parquet")
        for name, texts in (labels or {}).items():
            texts.alias("label").to_frame().write_parquet(aside / "columns" / f"{name}.labels.parquet")
        names = sorted(file.relative_to(aside).as_posix() for file in aside.rglob("*") if file.is_file())
        files = {
            name: {"bytes": (aside / name).stat().st_size, "sha256": sha256(aside / name)} for name in names
        }
        full = dict(card) | {
            "format_version": FORMAT_VERSION,
            "n_users": len(offsets) - 1,
            "n_items": items.height,
            "n_events": len(item_idx),
            "columns": sorted(columns),
            "fingerprint": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16],
            "files": files,
        }
        full = json.loads(json.dumps(full, default=str))
        full["checksum"] = card_checksum(full)
        (aside / "card.json").write_text(json.dumps(full, indent=2) + "\n")
        remember(out, {name: size_and_time(aside / name) for name in names})
        _move_into_place(aside, out)
    except (OSError, pl.exceptions.PolarsError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        if "requested and" in why:  # all that numpy says of a full disk
            why = f"no space left, or a limit on file sizes ({why})"
        raise EnsuiteError(f"{out}: cannot be written: {why}; nothing was left behind") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Dataset.open(out)


def _move_into_place(aside: Path, out: Path) -> None:
    """Rename, and only then delete what was there: at no moment does ``out`` hold half of anything."""
    old = aside.with_suffix(".replaced")
    if out.exists():
        os.replace(out, old)
    os.replace(aside, out)
    shutil.rmtree(old, ignore_errors=True)


def _remove_stale(out: Path) -> None:
    """Delete what a killed process left beside ``out``; a live one's folder bears its process number."""
    for left in out.parent.glob(f".{out.name}.*-*.partial"):
        pid = left.name.removeprefix(f".{out.name}.").split("-")[0]
        if pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def index_ids(table: pl.DataFrame, column: str, ids: Sequence[Any]) -> np.ndarray:
    """Return the 1-based row of each id in ``table[column]``, 0 where it is not there: [len(ids)] int64.

    Ids are compared in the table's own type: the text "12" finds the integer 12, and the other way round.

    >>> index_ids(pl.DataFrame({"item_id": [10, 20]}), "item_id", ["20", 5]).tolist()
    [2, 0]
    """
    known = table[column]
    asked = pl.Series("id", [str(i) for i in ids], dtype=pl.String)
    rows = pl.DataFrame({"id": known.cast(pl.String), "row": np.arange(1, len(known) + 1)})
    return (
        pl.DataFrame({"id": asked})
        .join(rows, on="id", how="left", maintain_order="left")["row"]
        .fill_null(0)
        .to_numpy()
    )


def _read_card(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise EnsuiteError(
            f"{path}: no such dataset folder; make one with `ensuite prepare LOG --out {path}`"
        )
    try:
        card = json.loads((path / "card.json").read_text())
        version = card["format_version"]
        whole = version != FORMAT_VERSION or card["checksum"] == card_checksum(card)
    except FileNotFoundError:
        raise EnsuiteError(f"{path}: no dataset: card.json is missing") from None
    except (ValueError, KeyError, TypeError):
        raise EnsuiteError(f"{path / 'card.json'}: damaged; prepare the dataset again") from None
    if not whole:
        raise EnsuiteError(
            f"{path / 'card.json'}: edited since it was written (checksum differs); prepare the dataset again"
        )
    if version != FORMAT_VERSION:
        raise EnsuiteError(
            f"{path}: dataset format {version}, this version of ensuite reads {FORMAT_VERSION}; prepare "
            "the dataset again"
        )
    return card
