"""Personal repeat: what the user heard most, and most recently, again; below all that, the popular items.

The base level of ACT-R (Anderson et al. 2004) over the user's own history, ``a_v = sum (now - t)^-decay``
over the times t at which v was there: the row "ACT-R repeat" of PISA's tables (RecSys 2024), and with
``decay: 0``, a count, their "personal top". No training, and nothing new is ever found, so that what it
scores is what repetition alone is worth. Measure it where repeats are right answers (a sessions split).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ensuite.config import config
from ensuite.data.batches import History
from ensuite.data.dataset import Events
from ensuite.models._counting import item_counts, popularity_shares
from ensuite.models.base import BlockScorer, FittedModel
from ensuite.nn.act_r import decay


@config
class PersonalRepeatConfig:
    """Configuration of the repeat baseline."""

    decay: float = 0.5
    """Exponent of the time since an event; 0 counts events (pure frequency), and needs no times."""
    max_length: int = 1000
    """How many of the last events are counted."""

    def __post_init__(self) -> None:
        if self.decay < 0:
            raise ValueError(f"decay = {self.decay}: 0 (pure frequency) or more")
        if self.max_length < 1:
            raise ValueError(f"max_length = {self.max_length}: at least 1 is needed")


class PersonalRepeat(FittedModel):
    """Score = the item's share of the user's base level, above 0; items never heard lie below 0, by
    popularity."""

    Config = PersonalRepeatConfig
    summary = "The user's own items by frequency and recency (base level of ACT-R)"
    family = "baseline"
    state = "measured"
    counts: Tensor  # [V + 1] int64

    def __init__(self, config: PersonalRepeatConfig, n_items: int, objective: None = None):
        super().__init__(config, n_items)
        self.register_buffer("counts", torch.zeros(n_items + 1, dtype=torch.int64))

    def needs_times(self) -> bool:
        return self.config.decay > 0

    def reads_request_time(self) -> bool:
        return self.config.decay > 0

    def fit(self, events: Events) -> None:
        self.counts = torch.from_numpy(item_counts(events))

    def catalogue(self) -> Tensor:
        return popularity_shares(self.counts) - 1

    def scorer(self, history: History, catalogue: Tensor) -> BlockScorer:
        history = history.last(self.max_length)
        mask = history.mask
        if self.config.decay:
            assert history.times is not None
            assert history.request_times is not None
            now = history.request_times.gather(1, history.lengths[:, None] - 1)  # [B, 1]
            listens = decay(now - history.times, self.config.decay) * mask  # [B, L]
        else:
            listens = mask.float()
        share = listens / listens.sum(1, keepdim=True)

        def scores(first: int, last: int) -> Tensor:
            heard = share.new_zeros(len(share), last - first)
            row, position = (mask & (history.items >= first) & (history.items < last)).nonzero(as_tuple=True)
            at = row, history.items[row, position] - first
            heard.index_put_(at, share[row, position], accumulate=True)
            return torch.where(heard > 0, heard, catalogue[first:last])

        return scores
