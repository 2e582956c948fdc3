"""``ensuite store``: the keys and the upkeep of the service's event store."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from ensuite.serve.store import EventStore

DESCRIPTION = """\
Keys and upkeep of the store of `ensuite serve`, while it runs or not.

  ensuite store keys add shop --scope read write    # prints the secret, once
  ensuite store keys list
  ensuite store keys revoke shop                    # within seconds, in every process
  ensuite store forget --before 90d                 # retention: from a timer, every night
  ensuite store delete-user 42
  ensuite store info

Without --store: the environment's ENSUITE_STORE (the place for a URL with a password), or else
ensuite-events.sqlite in this folder, as `ensuite serve` does.
"""

PATIENCE = 60.0
"""Seconds that a statement may take: upkeep reads more than a request does."""
SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


@dataclass(frozen=True, kw_only=True)
class Store:
    """What every command takes."""

    store: str | None = None
    """URL of the database (postgresql+psycopg://user@host/database) or path of a SQLite file."""


@dataclass(frozen=True, kw_only=True)
class Add(Store):
    """Make a key and print its secret, which is shown this once: only its hash is kept."""

    name: tyro.conf.Positional[str]
    """What it is for; a name is given once."""
    scope: tuple[Literal["read", "write"], ...] = ("read",)
    """What it may do: read (recommendations, users, items), write (events, items, deletion, models)."""


@dataclass(frozen=True, kw_only=True)
class List(Store):
    """List the keys, revoked ones too."""

    json: bool = False
    """Print JSON, and nothing else, on standard output."""


@dataclass(frozen=True, kw_only=True)
class Revoke(Store):
    """Make a key worthless, within 5 seconds in services that run."""

    name: tyro.conf.Positional[str]


@dataclass(frozen=True, kw_only=True)
class Keys:
    """API keys: add, list, revoke."""

    command: (
        Annotated[Add, tyro.conf.subcommand("add")]
        | Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Revoke, tyro.conf.subcommand("revoke")]
    )


@dataclass(frozen=True, kw_only=True)
class Forget(Store):
    """Delete the events older than an age or a day."""

    before: str
    """An age (90d, 12h, 2w) or a moment (ISO text, UTC: 2024-05-01)."""


@dataclass(frozen=True, kw_only=True)
class DeleteUser(Store):
    """Delete all events of a user."""

    user: tyro.conf.Positional[str]


@dataclass(frozen=True, kw_only=True)
class Info(Store):
    """Count what the store holds (reads all of it)."""

    json: bool = False
    """Print JSON, and nothing else, on standard output."""


Command = (
    Annotated[Keys, tyro.conf.subcommand("keys")]
    | Annotated[Forget, tyro.conf.subcommand("forget")]
    | Annotated[DeleteUser, tyro.conf.subcommand("delete-user")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def main(argv: list[str]) -> None:
    """Run `ensuite store` with the arguments after its name."""
    command: Keys | Store = tyro.cli(
        Command,  # type: ignore[arg-type]
        args=argv,
        prog="ensuite store",
        description=DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    if isinstance(command, Keys):
        command = command.command
    with _opened(command) as store:
        match command:
            case Add():
                secret = store.add_key(command.name, frozenset(command.scope))
                sys.stderr.write("Keep it: it is not shown again. Send it as: Authorization: Bearer SECRET\n")
                sys.stdout.write(secret + "\n")
            case List():
                _list(store, command.json)
            case Revoke():
                store.revoke_key(command.name)
                sys.stderr.write(f"key '{command.name}' is revoked\n")
            case Forget():
                _count(store.forget(_moment(command.before)), f"older than {command.before}, deleted")
            case DeleteUser():
                _count(store.delete_user(command.user), f"of user {command.user} deleted")
            case Info():
                _info(store, command.json)


@contextmanager
def _opened(command: Store) -> Iterator[EventStore]:
    from ensuite.serve.store import EventStore, default_url

    url = command.store or default_url()
    store = EventStore.open(url, timeout=PATIENCE, create=isinstance(command, Add))
    try:
        yield store
    finally:
        store.close()


def _moment(text: str) -> int:
    """Return microseconds since 1970 of an age or a day."""
    from ensuite.errors import EnsuiteError
    from ensuite.serve.requests import to_seconds

    number, unit = text[:-1], text[-1:]
    if number.isdigit() and unit in SECONDS:
        return time.time_ns() // 1000 - int(number) * SECONDS[unit] * 1_000_000
    try:
        if text.isdigit():  # seconds, milliseconds, days? A deletion is no place to guess
            raise EnsuiteError("")
        return to_seconds(text, "s") * 1_000_000
    except EnsuiteError:
        raise EnsuiteError(
            f"--before {text}: give an age (90d, 12h, 2w) or ISO text like 2024-05-01T12:30 (UTC)"
        ) from None


def _count(number: int, words: str) -> None:
    sys.stdout.write(f"{number:,} event{'s' if number != 1 else ''} {words}\n")


def _list(store: EventStore, as_json: bool) -> None:
    kept = store.keys()
    if as_json:
        rows = [
            {
                "name": key.name,
                "scopes": sorted(key.scopes),
                "created": _iso(key.created),
                "revoked": _iso(key.revoked),
            }
            for key in kept
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("key", "scopes", "created", "revoked")
    for key in kept:
        scopes = " ".join(sorted(key.scopes))
        table.add_row(escape(key.name), scopes, _iso(key.created), _iso(key.revoked))
    Console().print(table, highlight=False)


def _info(store: EventStore, as_json: bool) -> None:
    held, keys = store.info(), store.keys()
    values = {
        "store": store.name,
        "events": held.events,
        "users": held.users,
        "first": _iso(held.first),
        "last": _iso(held.last),
        "items added": len(store.items()),
        "valid keys": sum(key.revoked is None for key in keys),
    }
    if as_json:
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    for name, value in values.items():
        shown = "-" if value is None else f"{value:,}" if isinstance(value, int) else value
        sys.stdout.write(f"{name:<12} {shown}\n")


def _iso(microseconds: int | None) -> str | None:
    """Write a moment as ISO text; what lies outside the years 1 to 9999 as the number that it is."""
    import datetime as dt

    if microseconds is None:
        return None
    try:
        moment = dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=microseconds)
    except OverflowError:
        return f"{microseconds} us"
    return moment.isoformat(sep=" ", timespec="seconds")
