"""Recency: what was there last comes again; below all repeated items, the popular ones.

The strongest simple rule where people return to the same items (listening, groceries, re-orders). Where seen
items are excluded, as in most papers' protocols, nothing of it is left but the popularity that fills up the
list: score with ``exclude="none"`` to measure it."""

from __future__ import annotations

import torch
from torch import Tensor

from ensuite.config import config
from ensuite.data.batches import History
from ensuite.data.dataset import Events
from ensuite.models._counting import ages, item_counts, popularity_shares
from ensuite.models.base import BlockScorer, FittedModel


@config
class RecencyConfig:
    """Configuration of recency."""

    max_length: int = 50
    """How many of the last events may be repeated."""

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length = {self.max_length}: at least 1 is needed")


class Recency(FittedModel):
    """Score = ``max_length`` for the last item, one less for each event further back; all other items lie
    below 1, by popularity. An item that occurs twice counts where it occurred last."""

    Config = RecencyConfig
    summary = "The user's own last items again, then the most popular"
    family = "baseline"
    state = "measured"
    counts: Tensor  # [V + 1] int64

    def __init__(self, config: RecencyConfig, n_items: int, objective: None = None):
        super().__init__(config, n_items)
        self.register_buffer("counts", torch.zeros(n_items + 1, dtype=torch.int64))

    def fit(self, events: Events) -> None:
        self.counts = torch.from_numpy(item_counts(events))

    def catalogue(self) -> Tensor:
        return popularity_shares(self.counts)

    def scorer(self, history: History, catalogue: Tensor) -> BlockScorer:
        history = history.last(self.max_length)
        value = (self.max_length - ages(history)).float()  # [B, L]

        def scores(first: int, last: int) -> Tensor:
            block = catalogue[first:last].repeat(len(history.items), 1)  # [B, last - first]
            inside = history.mask & (history.items >= first) & (history.items < last)
            row, position = inside.nonzero(as_tuple=True)
            cell = row * block.shape[1] + history.items[row, position] - first
            block.view(-1).scatter_reduce_(0, cell, value[row, position], "amax")
            return block

        return scores
