"""What `ensuite prepare` may be told: one frozen dataclass, from which the command line is made."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from ensuite.config import config
from ensuite.data.times import parse_gap

Format = Literal["guess", "csv", "tsv", "ndjson", "parquet", "sequences", "pairs"]
SplitKind = Literal["leave-one-out", "global-time", "unseen-users", "sessions"]


@config
class PrepareConfig:
    """How a log becomes a dataset. Every default keeps all events."""

    format: Format = "guess"
    """Form of the log's files. sequences: one user a line, `user item item ...`; pairs: one `user item` a
    line, in order."""
    archive: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """The original archive of a public dataset (file, folder or URL), e.g. `ensuite prepare ml-1m --from
    ml-1m.zip`."""

    user: str | None = None
    """Column of the user's id; guessed when not given, like the next four."""
    item: str | None = None
    """Column of the item's id."""
    time: str | None = None
    """Column of the time: integers (s, ms, us, ns; found and said), ISO 8601 text, or datetimes."""
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    """Unit of integer times, when the guess is wrong."""
    order: str | None = None
    """Integer column that orders events without a time, or with the same one (a position, a sequence
    number)."""
    rating: str | None = None
    """Column of a rating or other value, kept as event column `rating`."""
    kind: str | None = None
    """Column of the kind of event (view, click, buy), kept as event column `kind`."""
    session: str | None = None
    """Column of the session or basket, kept as event column `session`."""
    session_gap: str | None = None
    """Cut sessions by pauses instead: a longer one than this (20m, 90s, 1h, 2d) starts a new session."""
    keep: tuple[str, ...] = ()
    """More event columns to keep, under their own names: context, rewards, labels."""
    names: tuple[str, ...] = ()
    """Column names of a text file that has no header line."""
    separator: str | None = None
    """Separator of a text table, when it is neither a comma nor a tab (`::` is fine)."""

    items: str | None = None
    """Table of items (CSV, Parquet, ...): kept in items.parquet; a title column is found."""
    users: str | None = None
    """Table of users: kept in users.parquet."""

    min_rating: float | None = None
    """Keep events rated so or higher."""
    kinds: tuple[str, ...] = ()
    """Keep events of these kinds."""
    since: str | None = None
    """Keep events at or after this ISO date (UTC), or number in the log's own unit."""
    until: str | None = None
    """Keep events before this ISO date (UTC), or number in the log's own unit."""
    drop_duplicates: bool = False
    """Drop events equal to an earlier one in user, item, time and kept columns."""
    drop_repeats: bool = False
    """Keep only the first of consecutive events of a user with the same item."""
    min_user: int = 0
    """Drop users with fewer events (5 with --min-item 5: "5-core")."""
    min_item: int = 0
    """Drop items with fewer events."""
    one_pass: bool = False
    """Apply --min-user and --min-item once (items, then users), not to the fixed point."""
    last: int = 0
    """Keep the last so many events of each user; 0 keeps all."""

    session_min: int = 0
    """Sessions: drop those with fewer different items. An item counts once a session."""
    session_first: int = 0
    """Sessions: keep the first so many items of each; 0 keeps all."""
    min_sessions: int = 0
    """Sessions: drop users with fewer sessions."""

    ties: Literal["source", "shuffle"] = "source"
    """Order of events of one user at the same time: as in the source, or shuffled with --seed."""
    seed: int = 0
    """Seed of what is drawn: shuffled ties, held-out users."""

    split: SplitKind = "leave-one-out"
    """leave-one-out: each user's last event is test, the one before validation. global-time: everything
    before the first cut is trained on, up to the second validated, the rest tested. unseen-users: whole users
    are held out. sessions: each user's last sessions are test, those before validation, each asked for as a
    set."""
    cuts: tuple[str, str] | None = None
    """global-time: the two cuts: shares of events (0.8 0.9, the default), ISO dates, or times in the log's
    unit."""
    targets: Literal["next", "all"] = "next"
    """global-time: what is asked for in a phase: a user's next event, or all until the next cut."""
    held_out: tuple[float, float] = (0.1, 0.1)
    """unseen-users: share of users for validation and for test."""
    held_sessions: tuple[int, int] = (5, 10)
    """sessions: how many sessions of each user are for validation and for test."""

    @property
    def by_session(self) -> bool:
        """Whether the log is cut into sessions."""
        asked = self.session_gap is not None or max(self.session_min, self.session_first, self.min_sessions)
        return bool(asked) or self.split == "sessions"

    def __post_init__(self) -> None:
        if min(self.min_user, self.min_item, self.last, self.seed) < 0:
            raise ValueError("min_user, min_item, last and seed are counts: 0 or more")
        if min(self.session_min, self.session_first, self.min_sessions) < 0:
            raise ValueError("session_min, session_first and min_sessions are counts: 0 or more")
        if self.session_gap is not None:
            parse_gap(self.session_gap)
            if self.session is not None:
                raise ValueError(
                    f"session = {self.session} and session_gap = {self.session_gap}: sessions are cut by a "
                    "column or by pauses; leave one of them out"
                )
        if min(self.held_sessions) < 1:
            raise ValueError(
                f"held_sessions = {self.held_sessions[0]} {self.held_sessions[1]}: at least 1 each, for "
                "validation and for test"
            )
        if self.cuts is not None and self.split != "global-time":
            raise ValueError(f"cuts belong to --split global-time, not to {self.split}")
        if self.targets == "all" and self.split != "global-time":
            raise ValueError(f"targets = all belongs to --split global-time, not to {self.split}")
        valid, test = self.held_out
        if not (0 <= valid < 1 and 0 <= test < 1 and 0 < valid + test < 1):
            raise ValueError(
                f"held_out = {valid:g} {test:g}: two shares are needed whose sum is between 0 and 1"
            )
        if len(set(self.keep)) < len(self.keep):
            raise ValueError(f"keep = {' '.join(self.keep)}: a column is named twice")
