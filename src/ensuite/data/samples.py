"""How training samples are made of sequences: windows of rows, and which of their positions are asked for.

A sample is a range of rows of the event columns; what differs between papers is where ranges end and which
positions carry a target:

    every-position   one window per user, its last L + 1 events; each position predicts the next item
    sliding          as above, more windows per user, `stride` apart, so that long histories are used whole
    last-position    one window per user; only its last event is predicted
    prefixes         every prefix of at least one event (`stride`: every n-th, from the longest), cut to L;
                     only the event after it is predicted
    cloze            one window per user (`stride`: more), its last L events; a share of them is masked and
    predicted
    sessions         windows of the last L events up to the end of a session, every `stride`-th one counted
                     back from the user's last; the items of every session but the window's first are asked
                     for **at their own places**: the model predicts them from the sessions before theirs

Prefixes are the "dynamic segmentation" of ICSRec: with leave-one-out the training view of n events is without
its last two, so the targets are those at indices 1..n-3 of the user's sequence, each asked for once. For a
sequence longer than L + 3 the released code slides a window of L + 3 events over it instead; here its early
prefixes are samples too, and the late ones are cut to their last L events.

An epoch's order is a pure function of (seed, epoch), a batch's content of (seed, epoch, step): training
resumes in the middle of an epoch with two integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from ensuite.config import config
from ensuite.data.batches import Batch, History, length_buckets, read_history, read_shifted
from ensuite.data.dataset import Events
from ensuite.data.pairs import SameTarget
from ensuite.data.sessions import begins
from ensuite.errors import EnsuiteError

Kind = Literal["every-position", "last-position", "cloze", "sliding", "prefixes", "sessions"]


@config
class SamplesConfig:
    """Which samples are made of a user's sequence."""

    kind: Kind = "every-position"
    """every-position, sliding, last-position, prefixes, cloze (masked items), or sessions (the next one, as a
    set)."""
    stride: int = 0
    """Distance between windows of one user, counted back from the end; 0 = one window (for sliding: L; for
    prefixes: 1). Of sessions, in sessions."""
    mask_probability: float = 0.2
    """Cloze: share of a window's items that is masked (rho of BERT4Rec)."""
    max_masked: int = 0
    """Cloze: at most so many masks per window; 0 = no limit."""
    last_only: float = 0.1
    """Cloze: share of the windows in which only the last item is masked, as at inference."""
    pair: Literal["none", "random", "last"] = "none"
    """Prefixes, last-position: read a second history with the same target beside each; random in each epoch,
    or always the last in the log (ICSRec's release). A sample without another is its own pair."""
    ahead: int = 0
    """Prefixes: read the target and what comes after it too, so many events in all, as far as the training
    events go."""
    bucket: bool = True
    """Put sequences of similar length in one batch, so that little padding is computed."""

    def __post_init__(self) -> None:
        if self.stride < 0 or self.max_masked < 0 or self.ahead < 0:
            raise ValueError("stride, max_masked and ahead count events: 0 or more")
        if not (0 <= self.mask_probability <= 1 and 0 <= self.last_only <= 1):
            raise ValueError("mask_probability and last_only are shares: between 0 and 1")
        if self.pair != "none" and self.kind not in ("prefixes", "last-position"):
            raise ValueError(
                f"pair = {self.pair} pairs samples by their one target, which '{self.kind}' samples lack; "
                "use kind = prefixes or last-position, or pair = none"
            )
        if self.ahead and self.kind != "prefixes":
            raise ValueError(
                f"ahead = {self.ahead} reads on after the one target of a sample; '{self.kind}' samples have "
                "none, or the last training event; use kind = prefixes, or ahead = 0"
            )


@dataclass(frozen=True, eq=False)
class Extra:
    """Samples beside those that the log itself gives: after a history, or without one, an item that is to
    come, or must not, where certain preferences are stated."""

    user: np.ndarray  # [S] int64, user rows
    start: np.ndarray  # [S] int64, first row of the history
    end: np.ndarray  # [S] int64, one past its last row; that of ``start``: no history
    target: np.ndarray  # [S] int64, item rows
    numbers: np.ndarray  # [S, P] int64, the preferences, see `Stated`
    unwanted: np.ndarray  # [S] bool


class Samples:
    """The training samples of a log: ``len()`` batches an epoch, each read by ``batch(epoch, step)``.

    Parameters
    ----------
    events
        The training view of a dataset: ``dataset.events("train")``.
    max_length
        Most recent events that the model sees, L.
    batch_size
        Samples in a batch (the last batch of a pool may be smaller).
    extra
        More samples, for `prefixes` and `last-position` of events with stated preferences.
    """

    def __init__(
        self,
        events: Events,
        config: SamplesConfig,
        *,
        max_length: int,
        batch_size: int,
        seed: int,
        extra: Extra | None = None,
    ):
        self.events, self.config, self.batch_size, self.seed = events, config, batch_size, seed
        make = session_windows if config.kind == "sessions" else windows
        self.user, self.start, self.end = make(events, config, max_length)
        if len(self.user) == 0:
            raise EnsuiteError(
                f"no training sample: no user has the {_needed(config.kind)} that '{config.kind}' samples "
                "need; prepare with fewer events held out, or with more data"
            )
        self.extra, self.of_log = extra, len(self.user)
        if extra is not None:  # a sample's last row is its target: one more than its history has
            self.user = np.concatenate([self.user, extra.user])
            self.start = np.concatenate([self.start, np.maximum(extra.start, extra.end - max_length)])
            self.end = np.concatenate([self.end, extra.end + 1])
        paired = config.pair != "none"
        self.same_target = SameTarget(events, self.start, self.end) if paired else None
        self._order: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        pool = self.batch_size * 8
        whole, rest = divmod(len(self.user), pool)
        return whole * 8 + -(-rest // self.batch_size)

    @property
    def n_samples(self) -> int:
        """Samples in an epoch."""
        return len(self.user)

    def order(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of an epoch as arrays of sample numbers."""
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            lengths = self.end - self.start
            self._order = epoch, length_buckets(lengths, self.batch_size, rng, 8 if self.config.bucket else 1)
        return self._order[1]

    def batch(self, epoch: int, step: int, part: tuple[int, int] = (0, 1)) -> Batch:
        """Return batch ``step`` of ``epoch``; of several processes, ``part = (rank, world)`` reads its share
        of it."""
        rank, world = part
        which = self.order(epoch)[step][rank::world]
        return self.read(which, (self.seed, epoch, step, rank))

    def read(self, which: np.ndarray, seed: tuple[int, ...]) -> Batch:
        """Read the samples of numbers ``which`` as a batch; what is random in them depends on ``seed``."""
        start, end, user = self.start[which], self.end[which], torch.from_numpy(self.user[which])
        if self.config.kind == "cloze":
            history = read_history(self.events, start, end)
            return self._cloze(history, user, np.random.default_rng(seed))
        if self.config.kind == "sessions":
            history = read_history(self.events, start, end)
            assert history.sessions is not None
            return Batch(history, history.items * (history.sessions > 0), user)
        if self.events.stated is not None:
            return self._stated(which, start, end, user)
        history, targets = read_shifted(self.events, start, end)
        if self.config.kind in ("last-position", "prefixes"):
            last = np.arange(targets.shape[1])[None] == (end - start - 2)[:, None]
            targets = np.where(last, targets, 0)
        number, pair = torch.from_numpy(which), self._pair(which, seed)
        return Batch(history, torch.from_numpy(targets), user, pair, number, self._ahead(which))

    def _stated(self, which: np.ndarray, start: np.ndarray, end: np.ndarray, user: torch.Tensor) -> Batch:
        """Read samples of one target each with the preferences that go with it."""
        stated, extra, target = self.events.stated, self.extra, end - 1
        assert stated is not None
        more = which >= self.of_log
        row = np.where(more, 0, target)
        items, numbers = self.events.item_idx[row].astype(np.int64), stated.numbers[row]
        unwanted = np.zeros(len(which), bool)
        if extra is not None and more.any():
            at = which[more] - self.of_log
            items[more], unwanted[more] = extra.target[at], extra.unwanted[at]
            numbers[more] = 0
            numbers[more, : extra.numbers.shape[1]] = extra.numbers[at]
        history = read_history(self.events, start, target)
        targets = torch.zeros_like(history.items)
        last = torch.from_numpy(np.maximum(target - start - 1, 0))
        targets[torch.arange(len(which)), last] = torch.from_numpy(items)
        history = replace(history, preferences=stated.look_up(numbers))
        number = torch.from_numpy(which)
        return Batch(history, targets, user, number=number, unwanted=torch.from_numpy(unwanted))

    def _pair(self, which: np.ndarray, seed: tuple[int, ...]) -> History | None:
        if self.same_target is None:
            return None
        if self.config.pair == "random":
            others = self.same_target.random(which, np.random.default_rng(seed))
        else:
            others = self.same_target.latest(which)
        return read_shifted(self.events, self.start[others], self.end[others])[0]

    def _ahead(self, which: np.ndarray) -> torch.Tensor | None:
        if not self.config.ahead:
            return None
        row = self.end[which, None] - 1 + np.arange(self.config.ahead)  # [B, N]
        end = np.asarray(self.events.ends)[self.user[which], None]  # nothing later is training's
        items = np.where(row < end, self.events.item_idx[np.minimum(row, end - 1)], 0)
        return torch.from_numpy(items.astype(np.int64))

    def everything(self, device: torch.device | str = "cpu") -> Everything:
        """Read every sample once, in a fixed order, at each iteration."""
        return Everything(self, device)

    def _cloze(self, history: History, user: torch.Tensor, rng: np.random.Generator) -> Batch:
        """Mask round(length * rho) items of each window, at least one; the mask's token is item V + 1."""
        items = history.items.numpy()
        real = items != 0
        lengths = real.sum(1)
        count = np.maximum(1, np.rint(lengths * self.config.mask_probability)).astype(np.int64)
        if self.config.max_masked:
            count = np.minimum(count, self.config.max_masked)
        noise = np.where(
            real, rng.random(items.shape), 2.0
        )  # [B, L]: the smallest `count` of a row are masked
        rank = noise.argsort(1).argsort(1)
        masked = rank < count[:, None]
        only_last = rng.random(len(items)) < self.config.last_only
        last = np.arange(items.shape[1])[None] == (lengths - 1)[:, None]
        masked = np.where(only_last[:, None], last, masked) & real
        targets = torch.from_numpy(np.where(masked, items, 0))
        tokens = torch.from_numpy(np.where(masked, self.events.n_items + 1, items))
        return Batch(History(tokens, history.times, history.request_times), targets, user)


class Everything:
    """All samples in batches of similar length, the same at each iteration (what is masked in them too)."""

    def __init__(self, samples: Samples, device: torch.device | str):
        self.samples, self.device = samples, device

    def __len__(self) -> int:
        return -(-self.samples.n_samples // self.samples.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        samples = self.samples
        order = np.argsort(samples.end - samples.start, kind="stable")
        for step in range(len(self)):
            which = order[step * samples.batch_size : (step + 1) * samples.batch_size]
            yield samples.read(which, (samples.seed, step)).to(self.device)


def _needed(kind: str) -> str:
    return {"cloze": "1 training event", "sessions": "2 training sessions"}.get(kind, "2 training events")


def session_windows(
    events: Events, config: SamplesConfig, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return user, first row and one past the last row of every sample of `sessions`: [S] int64 each.

    A window ends with a session, and holds at least a part of the session before it.
    """
    if events.session is None:
        raise EnsuiteError(
            "'sessions' samples need a dataset that is cut into sessions: prepare it with --split sessions "
            "and --session COLUMN, or --session-gap 20m"
        )
    rows = events.rows()
    user = np.repeat(np.arange(len(events.offsets)), events.lengths)
    first = begins(user, events.session[rows])
    owner, start = user[first], rows[first]  # of each session
    stop = np.append(start[1:], 0)
    last = np.append(owner[1:] != owner[:-1], True)[: len(owner)]
    stop[last] = np.asarray(events.ends)[owner[last]]
    count = np.bincount(owner, minlength=len(events.offsets))
    number = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    back = count[owner] - 1 - number
    chosen = (number > 0) & (back % config.stride == 0 if config.stride else back == 0)
    owner, start, stop = owner[chosen], start[chosen], stop[chosen]
    if len(owner) and (longest := int((stop - start).max())) >= max_length:
        raise EnsuiteError(
            f"a session holds {longest} items, and the model reads {max_length} events: none of the sessions "
            "before it; give a larger max_length, or prepare with --session-first"
        )
    return owner, np.maximum(np.asarray(events.offsets)[owner], stop - max_length), stop


def windows(
    events: Events, config: SamplesConfig, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return user, first row and one past the last row of every sample: [S] int64 each."""
    first, end = np.asarray(events.offsets), np.asarray(events.ends)
    cloze = config.kind == "cloze"
    width = max_length + (0 if cloze else 1)
    user = np.flatnonzero(end - first >= (1 if cloze else 2))
    first, end = first[user], end[user]
    if config.kind == "prefixes":
        step = config.stride or 1
        per_user = -(-(end - first - 1) // step)
    elif config.kind == "sliding" or (cloze and config.stride):
        step = config.stride or max_length
        per_user = 1 + np.maximum(0, -(-(end - first - width) // step))
    else:
        step, per_user = 0, np.ones(len(user), np.int64)
    which = np.repeat(np.arange(len(user)), per_user)
    back = np.arange(per_user.sum()) - np.repeat(np.cumsum(per_user) - per_user, per_user)
    stop = end[which] - back * step
    if config.kind == "sliding" or (cloze and config.stride):
        stop = np.maximum(stop, np.minimum(first[which] + width, end[which]))  # the start window is whole
    return user[which], np.maximum(first[which], stop - width), stop
