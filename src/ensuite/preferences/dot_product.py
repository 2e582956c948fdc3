"""What a text encoder alone knows: the baseline that shares its space with the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ensuite.data.batches import History
from ensuite.models.base import BlockScorer
from ensuite.preferences.matching import Space


class DotProduct:
    """Scores an item by the dot product of its text with the mean of the preferences; histories are not read.

    Where the oracle chose the preference by the same product (`matching`), this shows how much of a result is
    in the construction.
    """

    max_length = 1

    def __init__(self, space: Space):
        self.space = space
        self.items = torch.from_numpy(space.items)
        self.n_items = len(space.items) - 1

    def reads_preferences(self) -> bool:
        return True

    def encode_preferences(self, texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(self.space.encode(texts))

    def catalogue(self) -> Tensor:
        return self.items

    def scorer(self, history: History, catalogue: Tensor) -> BlockScorer:
        assert history.preferences is not None
        there = history.preferences.any(-1, keepdim=True)  # [B, P, 1]
        mean = history.preferences.sum(1) / there.sum(1).clamp(min=1)
        return lambda first, last: mean @ catalogue[first:last].T
