"""Pairs of samples that ask for the same item: the positives of contrastive learning over subsequences."""

from __future__ import annotations

import numpy as np

from ensuite.data.dataset import Events

PRIME = 0x9E3779B97F4A7C15  # odd: has an inverse modulo 2^64


class SameTarget:
    """For each sample, the others with its target item and another history.

    Samples are kept in order of (target, history, row), so that those with one target stand together, and
    among them those with one history: partners are drawn by arithmetic on places in that order.

    Parameters
    ----------
    events
        The log.
    start, end
        Rows of each sample, its target the last: [S] int64 each, two rows or more a sample.
    """

    def __init__(self, events: Events, start: np.ndarray, end: np.ndarray):
        target = np.asarray(events.item_idx)[end - 1]
        history = hash_ranges(np.asarray(events.item_idx), start, end - 1)
        self.order = np.lexsort((end, history, target))  # [S] samples
        self.place = np.empty_like(self.order)  # [S] the inverse: each sample's place in the order
        self.place[self.order] = np.arange(len(self.order))
        target, history, end = target[self.order], history[self.order], end[self.order]
        new_target = np.append(True, target[1:] != target[:-1])
        new_history = new_target | np.append(True, history[1:] != history[:-1])
        self.targets = np.append(np.flatnonzero(new_target), len(end))  # [G + 1] where each target begins
        self.histories = np.append(np.flatnonzero(new_history), len(end))  # [R + 1] where each history begins
        self.last, self.before = self._last_two(end)

    def random(self, which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw a partner for each sample of ``which`` [B], all alike likely; itself where there is none."""
        place = self.place[which]
        first, stop = self._range(self.targets, place)
        own, own_stop = self._range(self.histories, place)
        others = (stop - first) - (own_stop - own)  # [B] samples with the target and another history
        drawn = first + (rng.random(len(which)) * others).astype(np.int64)
        drawn += np.where(drawn >= own, own_stop - own, 0)  # the sample's own history is stepped over
        return self.order[np.where(others > 0, drawn, place)]

    def latest(self, which: np.ndarray) -> np.ndarray:
        """Return the partner that stands last in the log, for each sample of ``which`` [B]; itself where
        there is none."""
        place = self.place[which]
        group = np.searchsorted(self.targets, place, "right") - 1
        _, own_stop = self._range(self.histories, place)
        partner = np.where(self.last[group] == own_stop - 1, self.before[group], self.last[group])
        return self.order[np.where(partner < 0, place, partner)]

    def _last_two(self, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the place of each target's last sample, and of the last with another history than that one
        (-1: none): [G] each."""
        final = self.histories[1:] - 1  # [R] the last sample of each history
        group = np.searchsorted(self.targets, final, "right") - 1
        order = np.lexsort((end[final], group))
        at = np.searchsorted(group[order], np.arange(len(self.targets) - 1), "right") - 1  # [G]
        several = (at > 0) & (group[order][at - 1] == group[order][at])
        return final[order[at]], np.where(several, final[order[at - 1]], -1)

    @staticmethod
    def _range(bounds: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.searchsorted(bounds, place, "right") - 1
        return bounds[at], bounds[at + 1]


def hash_ranges(items: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return a 64-bit number for each range ``items[start[s]:end[s]]``, equal for equal contents: [S] uint64.

    A polynomial in a prime, modulo 2^64, over random words that stand for the items; a range's share of the
    running sum, moved to exponent 0.

    >>> a, b, c = hash_ranges(np.array([7, 8, 9, 7, 8]), np.array([0, 3, 1]), np.array([2, 5, 3]))
    >>> bool(a == b), bool(b == c)
    (True, False)
    """
    words = np.random.default_rng(0).integers(1, 2**64 - 1, int(items.max(initial=0)) + 1, np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words[items] * _powers(PRIME, len(items)))])
    return (sums[end] - sums[start]) * _powers(pow(PRIME, -1, 2**64), len(items) + 1)[start]


def _powers(base: int, n: int) -> np.ndarray:
    """Return base^0 .. base^(n - 1) modulo 2^64: [n] uint64."""
    factors = np.full(n, base, np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)
