"""Listening logs made up by ACT-R, with known weights of its three parts: what a model of memory can be
tested on.

Tracks belong to groups of two independent kinds: companions, which are put on together, and styles, which
sound alike. What a user plays next is retrieved from what was just played: each track of a new session is
one of the session before, drawn by its activation, which is the weighted sum of

    base level        how recently and often the user played it, sum (now - t)^-0.5 over earlier sessions
    spreading         how many of the session's other tracks are its companions
    partial matching  how many of them are of its style

each divided by its sum over the session. A share ``explore`` of the tracks comes at random, some of them as
companions and some of one style, so that the parts differ within a session.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

EPOCH = 1_600_000_000  # seconds: when the logs begin


@dataclass(frozen=True)
class ActRLog:
    """A made-up log and what is known of it."""

    events: pl.DataFrame
    """Columns user, item, time (s), session (counted from 0 within a user)."""
    company: np.ndarray
    """Group of companions of each item id 0..V-1: [V] int64."""
    style: np.ndarray
    """Style of each item id: [V] int64."""


def act_r_log(
    weights: tuple[float, float, float],
    *,
    users: int = 200,
    items: int = 240,
    sessions: int = 30,
    length: int = 8,
    companions: int = 4,
    styles: int = 12,
    explore: float = 0.4,
    seed: int = 0,
) -> ActRLog:
    """Make a log that obeys ACT-R.

    Parameters
    ----------
    weights
        Of base level, spreading and partial matching; at least 0, not all 0.
    users, items, sessions, length
        How many of each; ``length`` tracks are drawn for a session, of which repeated ones count once.
    companions, styles
        Tracks in a group of companions, and how many styles there are.
    explore
        Share of the tracks that come at random.

    Examples
    --------
    >>> act_r_log((0.6, 0.3, 0.1), users=2, sessions=3).events.columns
    ['user', 'item', 'time', 'session']
    """
    if len(weights) != 3 or min(weights) < 0 or sum(weights) == 0:
        raise ValueError(f"weights = {weights}: three numbers of at least 0, not all 0")
    rng = np.random.default_rng(seed)
    company = rng.permutation(items) // companions  # [V]
    style = rng.permutation(items) % styles  # [V]
    by_company, by_style = (np.argsort(group, kind="stable") for group in (company, style))
    size = np.bincount(style, minlength=styles)
    everybody = np.arange(users)

    def at_random() -> np.ndarray:
        """Draw tracks of which the first third are companions, the second of one style: [U, N]."""
        drawn = rng.integers(0, items, (users, length))
        third = length // 3
        mates = rng.integers(0, companions, (users, third)) + company[drawn[:, :1]] * companions
        drawn[:, :third] = by_company[np.minimum(mates, items - 1)]
        kin = style[drawn[:, third : third + 1]]
        first = (np.cumsum(size) - size)[kin]
        drawn[:, third : 2 * third] = by_style[first + rng.integers(0, size[kin], (users, third))]
        return drawn

    now = EPOCH + rng.integers(0, 86_400, users)
    played_at = np.zeros((users, items, sessions))  # 0 = not in that session
    session = at_random()
    frames = []
    for number in range(sessions):
        if number:
            weight = np.zeros((users, length))
            before = played_at[:, :, : number - 1]
            for gain, part in zip(weights, _parts(session, now, before, company, style)):
                weight += gain * part / np.maximum(part.sum(1, keepdims=True), 1e-12)
            weight += 1e-6
            steps = np.cumsum(weight / weight.sum(1, keepdims=True), axis=1)
            draw = rng.random((users, length, 1))
            source = np.minimum((draw > steps[:, None]).sum(2), length - 1)  # [U, N]
            followed = np.take_along_axis(session, source, 1)
            now = now + rng.integers(3_600, 5 * 86_400, users)
            session = np.where(rng.random((users, length)) < explore, at_random(), followed)
        played_at[everybody[:, None], session, number] = now[:, None]
        frames.append(
            pl.DataFrame(
                {
                    "user": np.repeat(everybody, length),
                    "item": session.ravel(),
                    "time": np.repeat(now, length),
                    "session": np.full(users * length, number),
                }
            )
        )
    events = pl.concat(frames).unique(["user", "item", "session"], keep="first", maintain_order=True)
    return ActRLog(events.sort("user", "session", maintain_order=True), company, style)


def _parts(
    session: np.ndarray, now: np.ndarray, played_at: np.ndarray, company: np.ndarray, style: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return base level, spreading and partial matching of the tracks of each user's session: [U, N] each.

    ``played_at`` [U, V, sessions] holds the sessions before this one.
    """
    times = np.take_along_axis(played_at, session[:, :, None], 1)  # [U, N, sessions]
    base = np.where(times > 0, np.maximum(now[:, None, None] - times, 1) ** -0.5, 0.0).sum(2)
    other = session[:, :, None] != session[:, None]  # [U, N, N]
    spreading, matching = (
        ((group[session][:, :, None] == group[session][:, None]) & other).sum(2) for group in (company, style)
    )
    return base, spreading.astype(float), matching.astype(float)
