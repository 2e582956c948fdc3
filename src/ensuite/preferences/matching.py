"""Which of the preferences of a step goes with an event: the paper's oracle, and two choices without one.

The oracle takes, of the preferences that were written before the target, the positive one whose text is
nearest to the target's: argmax over p of <e(p), e(target)>. **The target chooses the preference, in tests
too**: that is how the paper's benchmark is defined. The paper takes Sentence-T5; here it is the encoder that
is at hand. Where a step has no row of its own, the newest one before it serves (the paper: for Steam all
earlier ones).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ensuite.content.encoders import TextEncoder
from ensuite.content.template import render_items
from ensuite.content.vectors import encode_texts
from ensuite.data.dataset import Dataset
from ensuite.preferences.schema import Preferences

Choice = Literal["matched", "last", "all"]
BLOCK = 1 << 14
"""Targets that are matched at a time."""


@dataclass(frozen=True, eq=False)
class Space:
    """Preferences and items as vectors of one encoder, whose dot products say what fits what."""

    texts: np.ndarray  # [T + 1, D] float32; row 0 is 0
    items: np.ndarray  # [V + 1, D] float32; row 0 is 0, and so is an item without text
    encode: Callable[[Sequence[str]], np.ndarray]
    """Texts to their vectors: [N, D]."""


def build_space(
    dataset: Dataset,
    preferences: Preferences,
    text: str,
    encoder: TextEncoder,
    *,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Space:
    """Encode what is not in the cache already.

    Parameters
    ----------
    text
        What describes an item, as for `ensuite.content.template.render_items`.
    cache, progress
        As for `ensuite.content.vectors.encode_items`.
    """

    def encode(texts: Sequence[str]) -> np.ndarray:
        known, _ = encode_texts(list(dict.fromkeys(filter(None, texts))), encoder, cache, progress)
        nothing = np.zeros(encoder.dim, np.float32)
        return np.stack([known[one] if one else nothing for one in texts])

    items = render_items(dataset.items, text, str(dataset.path))
    return Space(encode(["", *preferences.texts]), encode(["", *items]), encode)


def choose(
    preferences: Preferences,
    user: np.ndarray,
    index: np.ndarray,
    target: np.ndarray,
    choice: Choice,
    space: Space | None = None,
) -> np.ndarray:
    """Return the numbers of the texts that go with each event: [Q, 1], or [Q, 5] for `all`; 0: none.

    Parameters
    ----------
    user, index
        The event's user row, and its place among that user's events, from 0: [Q] each.
    target
        The event's item row: [Q].
    choice
        `matched` (needs the ``space``), `last` of the step's positive ones, `all` of the step as written.
    """
    row = preferences.row_at(user, index)
    if choice == "all":
        return np.where(row[:, None] >= 0, preferences.members[row], 0)
    numbers = candidates(preferences, row)  # [Q, 5]
    if choice == "last":
        last = numbers.shape[1] - 1 - (numbers[:, ::-1] > 0).argmax(1)
        return np.take_along_axis(numbers, last[:, None], 1)
    assert space is not None
    best = np.zeros((len(row), 1), np.int64)
    for at in range(0, len(row), BLOCK):
        block, items = numbers[at : at + BLOCK], target[at : at + BLOCK]
        scores = np.einsum("qpd,qd->qp", space.texts[block], space.items[items])
        chosen = np.where(block > 0, scores, -np.inf).argmax(1)
        best[at : at + BLOCK] = np.take_along_axis(block, chosen[:, None], 1)
    return best


def candidates(preferences: Preferences, row: np.ndarray) -> np.ndarray:
    """Return the texts of rows [Q] among which the matching chooses, [Q, 5]: the positive ones; where there
    are none, all, those that the rule can turn into their opposites turned."""
    members, negative = preferences.members[row], preferences.negative[row]
    positive = np.where(negative, 0, members)
    turned = np.where(negative, preferences.opposite[members], members)
    found = np.where((positive > 0).any(1, keepdims=True), positive, turned)
    return np.where(row[:, None] >= 0, found, 0)
