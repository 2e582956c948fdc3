"""Which column of a log is the user, the item, the time: named by the caller, or guessed and said."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ensuite.data.options import PrepareConfig
from ensuite.errors import EnsuiteError, did_you_mean

GUESSES: dict[str, str] = {
    "user": (
        "userid user uid visitorid customerid customer reviewerid memberid member accountid "
        "profileid playerid listenerid author authorid username userkey useridx visitor"
    ),
    "item": (
        "itemid item iid movieid asin parentasin sku productid product articleid videoid trackid "
        "artistid songid bookid isbn businessid poiid venueid newsid contentid appid gameid "
        "gmapid playlistid recipeid hotelid goodsid adid docid itemkey itemidx movie"
    ),
    "time": (
        "timestamp ts timestampms timems unixreviewtime unixtimestamp unixtime time datetime eventtime "
        "eventtimestamp createdat playedat reviewdate tdat eventdate date when at day"
    ),
    "rating": "rating ratings stars overall score value reviewrating",
    "kind": "kind event eventtype eventname action actiontype behavior behaviour behaviortype type",
    "session": "sessionid session basketid basket orderid",
    "order": "position pos seq sequence order step index",
    "title": "title name itemtitle itemname movietitle productname producttitle productdisplayname",
}
"""Column names, without case and punctuation, by which a role is guessed; the first that is there wins."""


ROLES = ("user", "item", "time", "order", "rating", "kind", "session")
MANY = 20  # columns that a message lists


@dataclass(frozen=True)
class Role:
    """One column of the log and what it is taken for."""

    role: str
    column: str
    how: str  # "given", "guessed", or "known" of a public dataset


def plain(name: str) -> str:
    """Return a column's name without case, punctuation and RecBole's type suffix.

    >>> plain("User_ID"), plain("item_id:token")
    ('userid', 'itemid')
    """
    return re.sub(r"[^a-z0-9]", "", name.split(":")[0].lower())


def guess(role: str, names: Sequence[str]) -> str | None:
    """Return the column that looks most like ``role``, or None."""
    by_plain = {plain(name): name for name in reversed(names)}
    return next((by_plain[known] for known in GUESSES[role].split() if known in by_plain), None)


def require(where: str, flag: str, name: str, names: Sequence[str]) -> str:
    """Return ``name`` if it is a column; say the nearest one otherwise."""
    if name not in names:
        near = did_you_mean(name, names)
        hint = "" if near.startswith("known") else f"{near} "
        raise EnsuiteError(f"{where}: no column '{name}' (--{flag}); {hint}({say_columns(names)})")
    return name


def say_columns(names: Sequence[str]) -> str:
    """List the columns of a log, not more than fit a message."""
    rest = f", ... and {len(names) - MANY} more" if len(names) > MANY else ""
    return f"columns: {', '.join(names[:MANY])}{rest}"


def assign_roles(
    where: str, names: Sequence[str], config: PrepareConfig, known: Collection[str] = ()
) -> list[Role]:
    """Say which column plays which role; user and item are necessary.

    Those in ``known`` are said by a public dataset. Without a user column a session column stands for it. An
    order column is guessed only where there is no time.
    """
    roles: dict[str, Role] = {}
    for role in ROLES:
        given = getattr(config, role)
        if given is not None:
            roles[role] = Role(
                role, require(where, role, given, names), "known" if role in known else "given"
            )
    for role in ("user", "item", "time", "rating", "kind", "session"):
        if role == "session" and config.session_gap is not None:
            continue  # the sessions are cut by pauses, whatever else there is
        taken = {r.column for r in roles.values()} | set(config.keep)
        found = guess(role, [name for name in names if name not in taken])
        if role not in roles and found is not None:
            roles[role] = Role(role, found, "guessed")
    if "user" not in roles and "session" in roles:
        roles["user"] = Role("user", roles.pop("session").column, "guessed: a session stands for the user")
    if "time" not in roles and "order" not in roles:
        found = guess("order", [name for name in names if name not in {r.column for r in roles.values()}])
        if found is not None:
            roles["order"] = Role("order", found, "guessed")
    for role in ("user", "item"):
        if role not in roles:
            raise EnsuiteError(
                f"{where}: no column looks like the {role}; name it with --{role} ({say_columns(names)})"
            )
    if roles["user"].column == roles["item"].column:
        raise EnsuiteError(
            f"{where}: column '{roles['user'].column}' cannot be both user and item; name both, --user "
            "and --item"
        )
    for flag, role in (("min_rating", "rating"), ("kinds", "kind")):
        if getattr(config, flag) not in (None, ()) and role not in roles:
            option = flag.replace("_", "-")
            raise EnsuiteError(
                f"{where}: --{option} needs a {role} column; name it with --{role} ({say_columns(names)})"
            )
    if config.by_session and config.session_gap is None and "session" not in roles:
        raise EnsuiteError(
            f"{where}: sessions are asked for, and no column looks like one; name it with --session, or cut "
            f"by pauses with --session-gap 20m ({say_columns(names)})"
        )
    kept = [Role(name, require(where, "keep", name, names), "given") for name in config.keep]
    clash = {r.role for r in kept} & set(roles)
    kept = [r for r in kept if r.role not in clash or roles[r.role].column != r.column]
    for extra in kept:
        if extra.role in roles:
            raise EnsuiteError(
                f"{where}: --keep {extra.column}: an event column of that name is there already; rename it"
            )
    return [*(roles[role] for role in ROLES if role in roles), *kept]
