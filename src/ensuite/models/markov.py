"""First-order Markov chain: how often did the item come next after the last one?

Transitions are counted over the training events and smoothed towards popularity, so that an item never
followed before still has an order among all others:

    P(j | i) = (c_ij + a p_j) / (c_i + a)

with c_ij the (weighted) count of j after i, c_i its sum over j, p_j the share of j among all events, a =
``smoothing``. The table of counts is sparse: it holds at most one number per event and step."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from ensuite.config import config
from ensuite.data.batches import History
from ensuite.data.dataset import Events
from ensuite.data.transitions import count_transitions
from ensuite.models._counting import SparseModel, ages, item_counts
from ensuite.models.base import BlockScorer


@config
class MarkovConfig:
    """Configuration of the Markov chain."""

    last: int = 1
    """How many of the last items speak; the score is the weighted sum of their transition probabilities."""
    decay: float = 0.5
    """Weight of the item one event further back (only with last > 1)."""
    steps: int = 1
    """Count what comes within so many events after an item, at distance d with weight 1 / d."""
    smoothing: float = 1.0
    """Strength of popularity, in pseudo-counts per item; above 0."""

    def __post_init__(self) -> None:
        if self.last < 1 or self.steps < 1:
            raise ValueError("last and steps count events: at least 1")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay = {self.decay}: above 0, at most 1")
        if self.smoothing <= 0:
            raise ValueError(f"smoothing = {self.smoothing}: above 0 (0.01 is all but none)")


class Markov(SparseModel):
    """Score = smoothed probability of the item after the last one (the last ones, weighted)."""

    Config = MarkovConfig
    summary = "First-order Markov chain with popularity back-off"
    family = "baseline"
    state = "measured"
    popularity: Tensor  # [V + 1] float32, p_j
    backoff: Tensor  # [V + 1] float32, a / (c_i + a)

    def __init__(self, config: MarkovConfig, n_items: int, objective: None = None):
        super().__init__(config, n_items)
        self.register_buffer("popularity", torch.zeros(n_items + 1))
        self.register_buffer("backoff", torch.zeros(n_items + 1))

    @property
    def max_length(self) -> int:
        return self.config.last

    def fit(self, events: Events) -> None:
        counts = count_transitions(events, self.config.steps, decay=True)
        total = np.asarray(counts.sum(1)).ravel() + self.config.smoothing  # c_i + a
        counts.data /= np.repeat(total, np.diff(counts.indptr))
        self.keep(counts)
        popularity = item_counts(events) / max(1, len(events.rows()))
        self.popularity = torch.from_numpy(popularity.astype(np.float32))
        self.backoff = torch.from_numpy((self.config.smoothing / total).astype(np.float32))

    def scorer(self, history: History, catalogue: sp.csr_matrix) -> BlockScorer:
        history = history.last(self.config.last)
        weight = history.mask * self.config.decay ** ages(history)  # [B, L]
        reached = self.reach(history, weight, catalogue)
        share = (weight * self.backoff[history.items]).sum(1, keepdim=True)  # [B, 1]
        return lambda first, last: reached(first, last) + share * self.popularity[first:last]
