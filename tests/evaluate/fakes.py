"""Scorers small enough to check by hand, and logs written down as lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ensuite.data.batches import History
from ensuite.data.dataset import Cases, Events


class TableScorer:
    """Scores item rows 0..V by a fixed table [V + 1], the same for everybody."""

    max_length = 5

    def __init__(self, scores: Sequence[float] | Tensor):
        self.table = torch.as_tensor(scores, dtype=torch.float32)
        self.n_items = len(self.table) - 1

    def catalogue(self) -> Tensor:
        return self.table

    def scorer(self, history: History, catalogue: Tensor) -> Callable[[int, int], Tensor]:
        # An expanded view on purpose: the evaluator must not write into it.
        return lambda first, last: catalogue[first:last].expand(len(history.items), -1)


class DotScorer:
    """Sums the vectors of the history (the last `max_length` items) and takes dot products, as real models
    do.
    """

    def __init__(
        self, n_items: int, dim: int = 16, *, whole: bool = False, max_length: int = 10, seed: int = 0
    ):
        generator = torch.Generator().manual_seed(seed)
        shape = n_items + 1, dim
        self.vectors = (
            torch.randint(-2, 3, shape, generator=generator).float()
            if whole
            else torch.randn(shape, generator=generator)
        )
        self.max_length = max_length
        self.n_items = n_items

    def catalogue(self) -> Tensor:
        return self.vectors

    def scorer(self, history: History, catalogue: Tensor) -> Callable[[int, int], Tensor]:
        user = (catalogue[history.items] * history.mask[..., None]).sum(1)  # [B, D]
        return lambda first, last: user @ catalogue[first:last].T


def log(
    histories: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], n_items: int
) -> tuple[Events, Cases]:
    """Return events and cases of users who had ``histories`` and then ``targets``."""
    rows = [[*h, *t] for h, t in zip(histories, targets)]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
    items = np.array([i for r in rows for i in r], np.int32)
    events = Events(offsets[:-1], offsets[1:], items, None, 1.0, n_items)
    end = offsets[:-1] + np.array([len(h) for h in histories])
    return events, Cases(np.arange(len(rows)), offsets[:-1], end, offsets[1:])


def random_log(
    n_users: int = 200, n_items: int = 300, n_targets: int = 1, seed: int = 0
) -> tuple[Events, Cases]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 40, n_users)
    draw: Any = lambda n: rng.integers(1, n_items + 1, n).tolist()  # noqa: E731
    return log([draw(n) for n in lengths], [draw(n_targets) for _ in range(n_users)], n_items)


def brute_ranks(model: DotScorer, events: Events, cases: Cases) -> np.ndarray:
    """Rank one case at a time by the definition, in plain NumPy; scores must be whole numbers to be exact."""
    out = []
    for c in range(len(cases)):
        history = events.item_idx[cases.history_start[c] : cases.history_end[c]].astype(int)
        targets = dict.fromkeys(events.item_idx[cases.history_end[c] : cases.target_end[c]].tolist())
        vectors = model.vectors.numpy()
        scores = vectors @ vectors[history[-model.max_length :]].sum(0)
        candidates = np.setdiff1d(np.arange(1, events.n_items + 1), history)
        for target in targets:
            higher = (scores[candidates] > scores[target]).sum()
            level = (scores[candidates] == scores[target]).sum()
            out.append(1 + higher + (level - 1) / 2 if target in candidates else np.inf)
    return np.array(out, float)
