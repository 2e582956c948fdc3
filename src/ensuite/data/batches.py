"""What a model sees: histories and training batches, gathered from ragged arrays without a loop over users.

Everything is padded on the **right** with item 0: a causal encoder then needs no padding mask, since no real
position can see a later one. Where an encoder counts positions from is its own matter; it has
`History.positions` and `lengths`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ensuite.data.dataset import Cases, Events
from ensuite.exporting import is_exporting


@dataclass(frozen=True)
class History:
    """Event sequences of B users, oldest first, padded on the right.

    ``times`` and ``request_times`` are int64 seconds or None. ``request_times[b, i]`` is when the item after
    position i is asked for: in training the next event's own time, at serving the request's; known then, so
    no leak, but an advantage over models that do not read it.

    ``sessions`` counts the sessions of a row from 0 (a row may begin within one); None when the log has none.

    ``preferences`` is what the user is known to want when the item after the last event is asked for, each
    text as `Model.encode_preferences` gives it, 0 where there are fewer than P; None: nothing is known.
    """

    items: Tensor  # [B, L] int64, 0 = padding
    times: Tensor | None = None  # [B, L] int64
    request_times: Tensor | None = None  # [B, L] int64
    sessions: Tensor | None = None  # [B, L] int64, 0 at padding
    preferences: Tensor | None = None  # [B, P, W]

    @property
    def mask(self) -> Tensor:
        """True at real positions: [B, L] bool."""
        return self.items != 0

    @property
    def lengths(self) -> Tensor:
        """Number of real positions: [B] int64."""
        return (self.items != 0).sum(1)

    @property
    def positions(self) -> Tensor:
        """0 at the oldest position, counting up: [1, L] int64."""
        return torch.arange(self.items.shape[1], device=self.items.device)[None]

    def to(self, device: torch.device | str) -> History:
        """Move every tensor to ``device``."""
        stated = None if self.preferences is None else self.preferences.to(device, non_blocking=True)
        return replace(self._each(lambda tensor: tensor.to(device, non_blocking=True)), preferences=stated)

    def last(self, n: int) -> History:
        """Keep at most the last ``n`` events of each row."""
        width = self.items.shape[1]
        if not is_exporting() and width <= n:  # an exported graph takes every width
            return self
        start = (self.lengths - n).clamp(min=0)[:, None]  # [B, 1]
        index = start + torch.arange(torch.sym_min(width, n), device=start.device)  # [B, min(L, n)]
        index = index.clamp(max=self.items.shape[1] - 1)
        kept = self._each(lambda tensor: tensor.gather(1, index))
        if kept.sessions is None:
            return kept
        return replace(kept, sessions=(kept.sessions - kept.sessions[:, :1]).clamp(min=0))

    def _each(self, change: Callable[[Tensor], Tensor]) -> History:
        """Change what has a value at each position."""
        times, requests, sessions = (
            None if t is None else change(t) for t in (self.times, self.request_times, self.sessions)
        )
        return History(change(self.items), times, requests, sessions, self.preferences)


@dataclass(frozen=True)
class Batch:
    """A training step's input. ``targets[b, i]`` is the item to predict at position i, 0 where nothing is
    asked.

    ``pair`` is another view of each row for contrastive terms (`SamplesConfig.pair`), else None; it has a
    width of its own. ``number`` tells samples of one target each apart, the same in every epoch; ``ahead``
    are the target and the items after it (`SamplesConfig.ahead`). ``unwanted`` marks rows whose
    target is what must not come; None: there are none.
    """

    history: History
    targets: Tensor  # [B, L] int64
    user: Tensor  # [B] int64, user rows of the dataset
    pair: History | None = None
    number: Tensor | None = None  # [B] int64
    ahead: Tensor | None = None  # [B, N] int64, 0 after the last training event
    unwanted: Tensor | None = None  # [B] bool

    def to(self, device: torch.device | str) -> Batch:
        """Move every tensor to ``device``."""
        return replace(
            self,
            history=self.history.to(device),
            targets=self.targets.to(device, non_blocking=True),
            user=self.user.to(device, non_blocking=True),
            pair=None if self.pair is None else self.pair.to(device),
            number=None if self.number is None else self.number.to(device, non_blocking=True),
            ahead=None if self.ahead is None else self.ahead.to(device, non_blocking=True),
            unwanted=None if self.unwanted is None else self.unwanted.to(device, non_blocking=True),
        )


def gather(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows ``start[b]:end[b]`` as a padded index and its mask: [B, W] int64 and [B, W] bool.

    W is the longest range. Padded cells hold a valid row, to be overwritten through the mask.
    """
    index = start[:, None] + np.arange(int((end - start).max(initial=1)))  # [B, W]
    mask = index < end[:, None]
    return np.where(mask, index, start[:, None]), mask


def read_history(
    events: Events, start: np.ndarray, end: np.ndarray, request_time: np.ndarray | None = None
) -> History:
    """Read rows ``start[b]:end[b]`` as a `History`.

    ``request_time`` [B] (ticks) is when the item after the last position is asked for; without it, the last
    event's time.
    """
    index, mask = gather(start, end)
    items = np.where(mask, events.item_idx[index], 0).astype(np.int64)
    sessions = _count_sessions(events, index, mask)
    if events.time is None:
        return History(torch.from_numpy(items), sessions=sessions)
    ticks = events.time[index]  # [B, L]
    requests = np.empty_like(ticks)
    requests[:, :-1] = ticks[:, 1:]
    last = np.arange(len(start)), end - start - 1
    requests[last] = ticks[last] if request_time is None else request_time
    times, requests = (np.where(mask, _seconds(t, events), 0) for t in (ticks, requests))
    return History(torch.from_numpy(items), torch.from_numpy(times), torch.from_numpy(requests), sessions)


def read_shifted(events: Events, start: np.ndarray, end: np.ndarray) -> tuple[History, np.ndarray]:
    """Read rows ``start[b]:end[b]``, two or more each, as a history of all but the last and the item after
    each position.

    The targets are [B, L] int64, 0 at padding; a request's time is that of the next event.
    """
    index, mask = gather(start, end)
    asked = mask[:, 1:]  # [B, L]: a position is read where one comes after it
    items = events.item_idx[index].astype(np.int64)
    history = torch.from_numpy(np.where(asked, items[:, :-1], 0))
    targets = np.where(asked, items[:, 1:], 0)
    sessions = _count_sessions(events, index[:, :-1], asked)
    if events.time is None:
        return History(history, sessions=sessions), targets
    seconds = _seconds(events.time[index], events)
    times, requests = (torch.from_numpy(np.where(asked, t, 0)) for t in (seconds[:, :-1], seconds[:, 1:]))
    return History(history, times, requests, sessions), targets


def _count_sessions(events: Events, index: np.ndarray, mask: np.ndarray) -> Tensor | None:
    """Count the sessions of each row from 0: [B, L] int64; None when the log has none."""
    if events.session is None:
        return None
    key = events.session[index]
    number = np.zeros(index.shape, np.int64)
    np.cumsum(key[:, 1:] != key[:, :-1], axis=1, out=number[:, 1:])
    return torch.from_numpy(np.where(mask, number, 0))


def _seconds(ticks: np.ndarray, events: Events) -> np.ndarray:
    if events.seconds_per_tick == 1.0:
        return ticks.astype(np.int64)
    return ticks // round(1 / events.seconds_per_tick)


def length_buckets(
    lengths: np.ndarray, batch_size: int, rng: np.random.Generator, pool: int = 8
) -> list[np.ndarray]:
    """Shuffle, sort by length within pools of ``pool`` batches, cut into batches, shuffle the batches.

    Padding then costs a few per cent, while every epoch still mixes users anew. ``pool = 1`` is plain
    shuffling.
    """
    order = rng.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for at in range(0, len(order), batch_size * pool):
        chunk = order[at : at + batch_size * pool]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")] if pool > 1 else chunk
        batches += [chunk[b : b + batch_size] for b in range(0, len(chunk), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def case_batches(
    events: Events, cases: Cases, *, max_length: int, batch_size: int, request_time: bool = True
) -> Iterator[tuple[np.ndarray, History]]:
    """Yield (positions of the cases, their histories), similar lengths together, each history cut to its last
    ``max_length`` events. With ``request_time`` the first target's own time is the time of the request."""
    start = np.maximum(cases.history_start, cases.history_end - max_length)
    order = np.argsort(cases.history_end - start, kind="stable")
    for at in range(0, len(order), batch_size):
        which = order[at : at + batch_size]
        asked = None
        if request_time and events.time is not None:
            asked = events.time[cases.history_end[which]]
        history = read_history(events, start[which], cases.history_end[which], asked)
        if events.stated is not None:
            history = replace(history, preferences=events.stated.at(cases.history_end[which]))
        yield which, history
