"""Popularity: the same items for everybody, those that occur most in the training events.

The row below which no system should fall. Scores are plain counts, so items of equal count are tied: the
evaluator counts a tie as half a place (``ensuite.evaluate``), the recommender lists tied items in the order
of the item table."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ensuite.config import config
from ensuite.data.batches import History
from ensuite.data.dataset import Events
from ensuite.errors import EnsuiteError
from ensuite.models._counting import item_counts
from ensuite.models.base import BlockScorer, FittedModel

SECONDS_PER_DAY = 86_400


@config
class PopularityConfig:
    """Configuration of popularity."""

    last_days: float = 0.0
    """Count only the events of the last so many days before the end of the training events; 0 = all."""

    def __post_init__(self) -> None:
        if self.last_days < 0:
            raise ValueError(f"last_days = {self.last_days}: 0 (all events) or more")


class Popularity(FittedModel):
    """Score = number of training events of the item."""

    Config = PopularityConfig
    summary = "Most frequent items, of all time or of the last days"
    family = "baseline"
    state = "measured"
    counts: Tensor  # [V + 1] int64

    def __init__(self, config: PopularityConfig, n_items: int, objective: None = None):
        super().__init__(config, n_items)
        self.register_buffer("counts", torch.zeros(n_items + 1, dtype=torch.int64))

    @property
    def max_length(self) -> int:
        return 1

    def fit(self, events: Events) -> None:
        rows = events.rows()
        if self.config.last_days > 0:
            if events.time is None:
                raise EnsuiteError(
                    f"popularity: last_days = {self.config.last_days} needs times, and this dataset holds "
                    "an order only; prepare it with --time COLUMN, or count all events (last_days = 0)"
                )
            time = np.asarray(events.time)[rows]
            ticks = round(self.config.last_days * SECONDS_PER_DAY / events.seconds_per_tick)
            rows = rows[time > time.max(initial=0) - ticks]
        self.counts = torch.from_numpy(item_counts(events, rows))

    def catalogue(self) -> Tensor:
        return self.counts.float()

    def scorer(self, history: History, catalogue: Tensor) -> BlockScorer:
        return lambda first, last: catalogue[first:last].repeat(len(history.items), 1)
